// What Swift cannot express about processes: a child that ends with its parent, a handler for mapped files that shrink,
// and the processor that the program needs.
#ifndef CPROCESS_H
#define CPROCESS_H

#include <sys/types.h>

/// Starts the program at `path`. The child has its own process group and only the three standard descriptors. It is
/// killed when the calling thread ends, so that thread must wait for it.
/// - Parameters:
///   - arguments: the program's name, its arguments, and NULL.
///   - standard: descriptors of this process that become 0, 1 and 2 of the child.
///   - child: is set to the process identifier.
/// - Returns: 0, or the `errno` of the failed call.
int child_start(const char *path, char *const arguments[], const int standard[3], pid_t *child);

/// A descriptor that becomes readable when the child has ended; -1 if the system does not support that.
int child_descriptor(pid_t child);

/// From now on, reading past the end of a mapped file that has become shorter ends the process with exit status 1 and
/// one line that names the file.
void mapped_files_may_shrink(void);

/// Ends the process with exit status 1 and one line where the processor lacks instructions that the program is compiled
/// for. Everything else may use them, so this must come first.
void require_processor(void);

#endif
