// Files that the service hands out: its page and its description.
#pragma once
#include <stddef.h>

struct service_resource {
    const char *_Nonnull name;
    /// Its media type.
    const char *_Nonnull type;
    const unsigned char *_Nonnull bytes;
    size_t count;
};

/// The file of a number, from 0; NULL after the last.
const struct service_resource *_Nullable service_resource(int index);
