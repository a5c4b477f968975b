// Starts a program as a child that cannot outlive its parent, which posix_spawn cannot do.
#define _GNU_SOURCE
#include "CProcess.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

// Runs in the child between vfork and exec. It shares the parent's memory, so it makes only system calls.
static void become(const char *path, char *const arguments[], const int standard[3], pid_t parent) {
    struct sigaction action;
    sigset_t none;
    for (int number = 1; number < NSIG; number++)
        if (sigaction(number, NULL, &action) == 0 &&
            (action.sa_handler != SIG_IGN || number == SIGPIPE) && action.sa_handler != SIG_DFL) {
            action.sa_handler = SIG_DFL;
            action.sa_flags = 0;
            sigaction(number, &action, NULL);
        }
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    // The parent may have ended before prctl was called.
    if (getppid() != parent) return;
    for (int i = 0; i < 3; i++)
        if (dup2(standard[i], i) < 0) return;
    // 4 is CLOSE_RANGE_CLOEXEC. Old kernels do not have the call; then descriptors without O_CLOEXEC are inherited.
    syscall(SYS_close_range, 3, ~0u, 4);
    // The program must not inherit the signals that this thread blocks; threads of a pool block many.
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execve(path, arguments, environ);
}

int child_start(const char *path, char *const arguments[], const int standard[3], pid_t *child) {
    // Copies above the standard descriptors, so that none is overwritten before it has been copied.
    int copies[3] = {-1, -1, -1};
    volatile int error = 0;
    for (int i = 0; i < 3 && error == 0; i++)
        if ((copies[i] = fcntl(standard[i], F_DUPFD_CLOEXEC, 3)) < 0) error = errno;
    if (error == 0) {
        sigset_t all, mask;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &mask);
        pid_t parent = getpid();
        pid_t identifier = vfork();
        if (identifier == 0) {
            become(path, arguments, copies, parent);
            error = errno ? errno : ECHILD;
            _exit(127);
        }
        if (identifier < 0)
            error = errno;
        else if (error != 0)
            while (waitpid(identifier, NULL, 0) < 0 && errno == EINTR) {}
        pthread_sigmask(SIG_SETMASK, &mask, NULL);
        *child = identifier;
    }
    for (int i = 0; i < 3; i++)
        if (copies[i] >= 0) close(copies[i]);
    return error;
}

int child_descriptor(pid_t child) { return (int)syscall(SYS_pidfd_open, child, 0); }
