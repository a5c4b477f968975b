// What Swift cannot say about processes: a child that ends with its parent, and a handler for files that shrink while mapped.
#ifndef CPROCESS_H
#define CPROCESS_H

#include <sys/types.h>

/// Starts the program at `path`. The child leads a process group of its own, has only the three standard descriptors, and
/// is killed when the calling thread ends, which is to wait for it.
/// - Parameters:
///   - arguments: with the program's name in front and NULL behind.
///   - standard: descriptors of this process that become the child's 0, 1 and 2.
///   - child: set to its identifier.
/// - Returns: 0, or the `errno` of what failed.
int child_start(const char *path, char *const arguments[], const int standard[3], pid_t *child);

/// A descriptor that becomes readable when the child has ended; -1 where the system has none.
int child_descriptor(pid_t child);

/// From now on, reading past the end of a mapped file that was made shorter ends the process with a line that names the
/// file and exit status 1.
void mapped_files_may_shrink(void);

#endif
