// Calls libcurl's variadic functions.
#include "curl_calls.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

typedef void CURL;
struct curl_slist;
typedef struct {
    int age;
    const char *version;
    unsigned int version_num;
} version_info;

enum { LONG = 0, OBJECT = 10000, FUNCTION = 20000 };
enum {
    WRITEDATA = OBJECT + 1,
    URL = OBJECT + 2,
    ERRORBUFFER = OBJECT + 10,
    USERAGENT = OBJECT + 18,
    HTTPHEADER = OBJECT + 23,
    HEADERDATA = OBJECT + 29,
    XFERINFODATA = OBJECT + 57,
    WRITEFUNCTION = FUNCTION + 11,
    HEADERFUNCTION = FUNCTION + 79,
    XFERINFOFUNCTION = FUNCTION + 219,
    LOW_SPEED_LIMIT = LONG + 19,
    LOW_SPEED_TIME = LONG + 20,
    NOPROGRESS = LONG + 43,
    NOBODY = LONG + 44,
    FOLLOWLOCATION = LONG + 52,
    CONNECTTIMEOUT = LONG + 78,
    HTTP_VERSION = LONG + 84,
    BUFFERSIZE = LONG + 98,
    NOSIGNAL = LONG + 99,
    PROTOCOLS = LONG + 181,
    TCP_KEEPALIVE = LONG + 213,
};
enum { INFO_STATUS = 0x200000 + 2, INFO_REDIRECT_URL = 0x100000 + 31 };
enum { GLOBAL_ALL = 3, HTTP_1_1 = 2, HTTP_AND_HTTPS = 3, OUT_OF_MEMORY = 27 };

struct curl_library {
    int (*curl_global_init)(long);
    version_info *(*curl_version_info)(int);
    CURL *(*curl_easy_init)(void);
    void (*curl_easy_reset)(CURL *);
    int (*curl_easy_setopt)(CURL *, int, ...);
    int (*curl_easy_getinfo)(CURL *, int, ...);
    int (*curl_easy_perform)(CURL *);
    void (*curl_easy_cleanup)(CURL *);
    const char *(*curl_easy_strerror)(int);
    struct curl_slist *(*curl_slist_append)(struct curl_slist *, const char *);
    void (*curl_slist_free_all)(struct curl_slist *);
};

#define LOAD(name)                                   \
    *(void **)&curl->name = dlsym(library, #name);   \
    if (!curl->name) goto failed;

struct curl_library *curl_library_open(void *library) {
    struct curl_library *curl = calloc(1, sizeof *curl);
    if (!curl) return NULL;
    LOAD(curl_global_init)
    LOAD(curl_version_info)
    LOAD(curl_easy_init)
    LOAD(curl_easy_reset)
    LOAD(curl_easy_setopt)
    LOAD(curl_easy_getinfo)
    LOAD(curl_easy_perform)
    LOAD(curl_easy_cleanup)
    LOAD(curl_easy_strerror)
    LOAD(curl_slist_append)
    LOAD(curl_slist_free_all)
    if (curl->curl_global_init(GLOBAL_ALL) != 0) goto failed;
    return curl;
failed:
    free(curl);
    return NULL;
}

uint32_t curl_library_version(struct curl_library *library) { return library->curl_version_info(0)->version_num; }

const char *curl_library_reason(struct curl_library *library, int32_t code) {
    return library->curl_easy_strerror(code);
}

void *curl_connection_open(struct curl_library *library) { return library->curl_easy_init(); }

void curl_connection_close(struct curl_library *library, void *connection) { library->curl_easy_cleanup(connection); }

static size_t take_header(const char *bytes, size_t size, size_t count, void *data) {
    const struct curl_request *request = data;
    request->header(request->context, bytes, size * count);
    return size * count;
}

static size_t take_body(const char *bytes, size_t size, size_t count, void *data) {
    const struct curl_request *request = data;
    // Any other number ends the transfer.
    return request->body(request->context, bytes, size * count) ? size * count : 0;
}

static int tick(void *data, int64_t a, int64_t b, int64_t c, int64_t d) {
    (void)a, (void)b, (void)c, (void)d;
    const struct curl_request *request = data;
    return request->tick(request->context) ? 0 : 1;
}

void curl_carry_out(
    struct curl_library *library, void *connection, const struct curl_request *request, struct curl_answer *answer) {
    memset(answer, 0, sizeof *answer);
    struct curl_slist *headers = NULL;
    for (const char *const *line = request->headers; *line; line++) {
        struct curl_slist *longer = library->curl_slist_append(headers, *line);
        if (!longer) {
            library->curl_slist_free_all(headers);
            answer->code = OUT_OF_MEMORY;
            return;
        }
        headers = longer;
    }
    CURL *curl = connection;
    int (*set)(CURL *, int, ...) = library->curl_easy_setopt;
    // What is connected stays connected.
    library->curl_easy_reset(curl);
    set(curl, URL, request->url);
    set(curl, HTTPHEADER, headers);
    set(curl, USERAGENT, request->agent);
    set(curl, NOBODY, (long)request->is_head);
    set(curl, FOLLOWLOCATION, 0L);
    set(curl, PROTOCOLS, (long)HTTP_AND_HTTPS);
    // Parts come over connections of their own, not as streams of one.
    set(curl, HTTP_VERSION, (long)HTTP_1_1);
    set(curl, CONNECTTIMEOUT, (long)request->connect_seconds);
    set(curl, LOW_SPEED_LIMIT, 1L);
    set(curl, LOW_SPEED_TIME, (long)request->stall_seconds);
    set(curl, TCP_KEEPALIVE, 1L);
    set(curl, BUFFERSIZE, 256L << 10);
    set(curl, NOSIGNAL, 1L);
    set(curl, ERRORBUFFER, answer->message);
    set(curl, HEADERFUNCTION, take_header);
    set(curl, HEADERDATA, request);
    set(curl, WRITEFUNCTION, take_body);
    set(curl, WRITEDATA, request);
    set(curl, XFERINFOFUNCTION, tick);
    set(curl, XFERINFODATA, request);
    set(curl, NOPROGRESS, 0L);
    answer->code = library->curl_easy_perform(curl);
    long status = 0;
    library->curl_easy_getinfo(curl, INFO_STATUS, &status);
    answer->status = status;
    const char *location = NULL;
    library->curl_easy_getinfo(curl, INFO_REDIRECT_URL, &location);
    if (location) answer->location = strdup(location);
    // The buffer and the lines go with this call.
    library->curl_easy_reset(curl);
    library->curl_slist_free_all(headers);
}
