// The allocator's heap, of which Swift's Glibc module does not tell all.
#pragma once

/// Gives pages that nothing is in any more back to the system.
void heap_trim(void);
