// Calls libedit's variadic functions.
#include "line_editor.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>

typedef struct editline EditLine;
typedef struct history History;
typedef struct {
    int number;
    const char *text;
} HistEvent;
typedef struct {
    const char *buffer, *cursor, *end;
} LineInfo;

enum { EL_PROMPT = 0, EL_EDITOR = 2, EL_BIND = 4, EL_ADDFN = 9, EL_HIST = 10, EL_GETCFN = 13, EL_CLIENTDATA = 14, EL_REFRESH = 20 };
enum { H_SETSIZE = 1, H_ENTER = 10, H_SETUNIQUE = 20 };
enum { CC_REFRESH = 4 };

struct line_editor {
    struct line_editor_owner owner;
    EditLine *lines;
    History *past;
    FILE *input, *output;
    char *before;
    EditLine *(*el_init)(const char *, FILE *, FILE *, FILE *);
    void (*el_end)(EditLine *);
    const char *(*el_gets)(EditLine *, int *);
    int (*el_set)(EditLine *, int, ...);
    int (*el_get)(EditLine *, int, ...);
    const LineInfo *(*el_line)(EditLine *);
    int (*el_insertstr)(EditLine *, const char *);
    void (*el_resize)(EditLine *);
    History *(*history_init)(void);
    void (*history_end)(History *);
    int (*history)(History *, HistEvent *, int, ...);
};

// The one editor of the process: libedit hands its own object to callbacks, and asking that for ours takes the editor.
static struct line_editor *current;

static struct line_editor *owner_of(EditLine *lines) {
    void *data = NULL;
    current->el_get(lines, EL_CLIENTDATA, &data);
    return data;
}

static char *prompt(EditLine *lines) {
    struct line_editor *editor = owner_of(lines);
    // libedit does not change it.
    return (char *)editor->owner.prompt(editor->owner.context);
}

static int read_character(EditLine *lines, wchar_t *character) {
    struct line_editor *editor = owner_of(lines);
    int32_t value = 0;
    int count = editor->owner.read(editor->owner.context, &value);
    *character = (wchar_t)value;
    return count;
}

static unsigned char complete(EditLine *lines, int character) {
    (void)character;
    struct line_editor *editor = owner_of(lines);
    char *text = editor->owner.complete(editor->owner.context, line_editor_before_cursor(editor));
    if (text) editor->el_insertstr(lines, text);
    free(text);
    return CC_REFRESH;
}

#define LOAD(name)                                                                                  \
    *(void **)&editor->name = dlsym(library, #name);                                                \
    if (!editor->name) goto failed;

struct line_editor *line_editor_new(void *library, struct line_editor_owner owner) {
    struct line_editor *editor = calloc(1, sizeof *editor);
    if (!editor || current) goto failed;
    LOAD(el_init)
    LOAD(el_end)
    LOAD(el_gets)
    LOAD(el_set)
    LOAD(el_get)
    LOAD(el_line)
    LOAD(el_insertstr)
    LOAD(el_resize)
    LOAD(history_init)
    LOAD(history_end)
    LOAD(history)
    editor->owner = owner;
    editor->input = fdopen(0, "r");
    editor->output = fdopen(1, "w");
    if (!editor->input || !editor->output) goto failed;
    editor->lines = editor->el_init("turbodiffusion", editor->input, editor->output, editor->output);
    editor->past = editor->history_init();
    if (!editor->lines || !editor->past) goto failed;
    current = editor;
    HistEvent event;
    editor->history(editor->past, &event, H_SETSIZE, 1000);
    editor->history(editor->past, &event, H_SETUNIQUE, 1);
    EditLine *lines = editor->lines;
    editor->el_set(lines, EL_CLIENTDATA, editor);
    editor->el_set(lines, EL_PROMPT, prompt);
    editor->el_set(lines, EL_EDITOR, "emacs");
    editor->el_set(lines, EL_HIST, editor->history, editor->past);
    editor->el_set(lines, EL_GETCFN, read_character);
    editor->el_set(lines, EL_ADDFN, "complete", "Completes a word", complete);
    editor->el_set(lines, EL_BIND, "^I", "complete", NULL);
    editor->el_set(lines, EL_BIND, "^R", "em-inc-search-prev", NULL);
    editor->el_set(lines, EL_BIND, "\033[1;5C", "em-next-word", NULL);
    editor->el_set(lines, EL_BIND, "\033[1;5D", "ed-prev-word", NULL);
    editor->el_set(lines, EL_BIND, "\033[3~", "ed-delete-next-char", NULL);
    return editor;
failed:
    if (editor) {
        if (editor->lines) editor->el_end(editor->lines);
        free(editor);
    }
    return NULL;
}

char *line_editor_read(struct line_editor *editor) {
    int count = 0;
    const char *line = editor->el_gets(editor->lines, &count);
    if (!line || count <= 0) return NULL;
    size_t length = strlen(line);
    if (length > 0 && line[length - 1] == '\n') length--;
    return strndup(line, length);
}

void line_editor_remember(struct line_editor *editor, const char *line) {
    HistEvent event;
    editor->history(editor->past, &event, H_ENTER, line);
}

void line_editor_redraw(struct line_editor *editor) { editor->el_set(editor->lines, EL_REFRESH); }

void line_editor_resize(struct line_editor *editor) { editor->el_resize(editor->lines); }

const char *line_editor_before_cursor(struct line_editor *editor) {
    const LineInfo *line = editor->el_line(editor->lines);
    free(editor->before);
    editor->before = strndup(line->buffer, (size_t)(line->cursor - line->buffer));
    return editor->before ? editor->before : "";
}

void line_editor_free(struct line_editor *editor) {
    editor->history_end(editor->past);
    editor->el_end(editor->lines);
    free(editor->before);
    free(editor);
    current = NULL;
}
