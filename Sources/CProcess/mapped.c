// Ends the process with one line, instead of a bare SIGBUS, if a mapped file has become shorter.
#define _GNU_SOURCE
#include "CProcess.h"

#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

// Everything below runs in a signal handler, so it uses only system calls and its own static memory.

static char line[4096 + 256];

/// Reads the next line of /proc/self/maps into `line`. Returns its length, or -1 at the end.
static int next_line(int file) {
    static char buffer[1024];
    static ssize_t filled = 0, position = 0;
    int length = 0;
    for (;;) {
        if (position == filled) {
            filled = read(file, buffer, sizeof buffer);
            position = 0;
            if (filled <= 0) return length > 0 ? length : -1;
        }
        char byte = buffer[position++];
        if (byte == '\n') return length;
        if (length < (int)sizeof line - 1) line[length++] = byte;
    }
}

static uintptr_t hexadecimal(const char **text) {
    uintptr_t value = 0;
    for (;; (*text)++) {
        char c = **text;
        if (c >= '0' && c <= '9') value = value << 4 | (uintptr_t)(c - '0');
        else if (c >= 'a' && c <= 'f') value = value << 4 | (uintptr_t)(c - 'a' + 10);
        else return value;
    }
}

/// The name of the file that is mapped at `address`, with question marks for control characters; NULL if there is none.
static const char *mapped_at(uintptr_t address) {
    int file = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    if (file < 0) return NULL;
    for (int length; (length = next_line(file)) >= 0;) {
        line[length] = 0;
        const char *text = line;
        uintptr_t low = hexadecimal(&text);
        if (*text++ != '-') continue;
        uintptr_t high = hexadecimal(&text);
        if (address < low || address >= high) continue;
        char *name = strchr(line, '/');
        for (char *c = name; c && *c; c++)
            if ((unsigned char)*c < 32 || *c == 127) *c = '?';
        return name;
    }
    return NULL;
}

static void say(const char *text) {
    ssize_t ignored = write(STDERR_FILENO, text, strlen(text));
    (void)ignored;
}

static void shrunk(int number, siginfo_t *info, void *context) {
    (void)context;
    // If several threads get the signal at once, only the first one prints.
    static atomic_flag entered = ATOMIC_FLAG_INIT;
    while (atomic_flag_test_and_set(&entered)) pause();
    // A signal from another process, or an address outside of all mapped files, is treated as without a handler.
    const char *name = info->si_code > 0 ? mapped_at((uintptr_t)info->si_addr) : NULL;
    if (!name) {
        signal(number, SIG_DFL);
        raise(number);
        return;
    }
    say("\nError: ");
    say(name);
    say(": the file was made shorter while it was in use, or its disk failed; put it back and start again\n");
    _exit(1);
}

void mapped_files_may_shrink(void) {
    struct sigaction action = {.sa_sigaction = shrunk, .sa_flags = SA_SIGINFO};
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, NULL);
}
