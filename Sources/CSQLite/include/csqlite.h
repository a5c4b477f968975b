// SQLite's C interface, and what Swift cannot say of it. The library is linked statically (libsqlite3.a of libsqlite3-dev).
#pragma once
#include <sqlite3.h>

// SQLITE_TRANSIENT is a cast of -1 to a function.
static inline int csqlite_bind_text(sqlite3_stmt *statement, int index, const char *bytes, int count) {
    return sqlite3_bind_text(statement, index, bytes, count, SQLITE_TRANSIENT);
}
