// HTTP by libcurl (libcurl.so.4 or libcurl-gnutls.so.4), which is opened at run time. Its functions are variadic, which
// Swift cannot call: hence these few. Values and signatures: curl.h of curl 7.62, which later versions keep.
#ifndef CURL_CALLS_H
#define CURL_CALLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#pragma clang assume_nonnull begin

struct curl_library;

/// The functions of a library that dlopen has opened; never freed. NULL where it lacks one, or cannot begin.
struct curl_library *_Nullable curl_library_open(void *library);
/// The version as 0xMMmmpp.
uint32_t curl_library_version(struct curl_library *library);
/// What libcurl says of a code.
const char *curl_library_reason(struct curl_library *library, int32_t code);

/// A connection that is kept between requests. Use it from one thread at a time. NULL without memory.
void *_Nullable curl_connection_open(struct curl_library *library);
void curl_connection_close(struct curl_library *library, void *connection);

/// A request, and what is called while it is carried out, on the same thread.
struct curl_request {
    const char *url;
    /// Lines such as "Range: bytes=0-9"; the list ends with NULL.
    const char *_Nullable const *_Nonnull headers;
    const char *agent;
    /// Ask for the headers only.
    bool is_head;
    /// Seconds until a connection must stand.
    int64_t connect_seconds;
    /// Seconds without a byte after which a request has failed.
    int64_t stall_seconds;
    void *context;
    /// A line of the header, with its end. Called for every answer, also those of a proxy.
    void (*header)(void *context, const char *line, size_t count);
    /// Bytes of the body. Returns whether to go on.
    bool (*body)(void *context, const void *bytes, size_t count);
    /// Called at least once a second. Returns whether to go on.
    bool (*tick)(void *context);
};

struct curl_answer {
    /// 0, or why there is no whole answer.
    int32_t code;
    /// The status; 0 where no answer came.
    int64_t status;
    /// More on `code`; empty where there is nothing more.
    char message[256];
    /// Where a redirection leads, as an absolute address, allocated with malloc; NULL where there is none.
    char *_Nullable location;
};

/// Carries out a request without following redirections, and waits.
void curl_carry_out(
    struct curl_library *library, void *connection, const struct curl_request *request, struct curl_answer *answer);

#pragma clang assume_nonnull end

#endif
