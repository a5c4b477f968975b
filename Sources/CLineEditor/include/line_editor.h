// One line at a time from a terminal, edited and with history, by libedit (libedit.so.2), which is opened at run time.
// Its functions are variadic, which Swift cannot call: hence these few. Use an editor from one thread.
// Values and signatures: histedit.h of libedit 3.1.
#ifndef LINE_EDITOR_H
#define LINE_EDITOR_H

#include <stdint.h>

#pragma clang assume_nonnull begin

struct line_editor;

/// What the editor asks its owner. Each is called on the thread that reads, while it reads.
struct line_editor_owner {
    void *context;
    /// What stands before the line; valid until the next call.
    const char *_Nonnull (*_Nonnull prompt)(void *context);
    /// The next character, when there is one. Returns 1, or 0 to give the line up.
    int32_t (*_Nonnull read)(void *context, int32_t *character);
    /// For the text before the cursor: what to insert after it, allocated with malloc; NULL for nothing.
    char *_Nullable (*_Nonnull complete)(void *context, const char *before);
};

/// An editor of standard input and output. NULL where the library lacks a function or the terminal cannot be edited on.
struct line_editor *_Nullable line_editor_new(void *library, struct line_editor_owner owner);
/// A line without its end, allocated with malloc; NULL where `read` gave it up.
char *_Nullable line_editor_read(struct line_editor *editor);
/// Adds a line to the history.
void line_editor_remember(struct line_editor *editor, const char *line);
/// Draws prompt and line again, where the cursor is. Only from within `read`.
void line_editor_redraw(struct line_editor *editor);
/// Takes over the size of the terminal.
void line_editor_resize(struct line_editor *editor);
/// Bytes of the line that stand before the cursor, as text; valid until the next call. Only from within `read`.
const char *line_editor_before_cursor(struct line_editor *editor);
void line_editor_free(struct line_editor *editor);

#pragma clang assume_nonnull end

#endif
