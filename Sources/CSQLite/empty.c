// Only the header counts; a target needs a source.
#include "csqlite.h"
