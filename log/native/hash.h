/* xxHash, compiled in where its header is installed (BSD 2-Clause, https://github.com/Cyan4973/xxHash).

   Without it MLDB_HAS_XXHASH is 0, the functions are never called, and callers use the functions of
   the xxhash package. */
#ifndef MLDB_HASH_H
#define MLDB_HASH_H

#include <stddef.h>
#include <stdint.h>

#ifdef MLDB_XXHASH
#define XXH_INLINE_ALL
#include <xxhash.h>
#define MLDB_HAS_XXHASH 1

static uint64_t mldb_check64(const void *data, size_t size, uint64_t seed)
{
    return XXH3_64bits_withSeed(data, size, seed);
}

/* The canonical form, big-endian, as the digests of FORMAT.md are stored. */
static void mldb_digest128(const void *data, size_t size, unsigned char *out)
{
    XXH128_canonicalFromHash((XXH128_canonical_t *)out, XXH3_128bits(data, size));
}
#else
#define MLDB_HAS_XXHASH 0

static uint64_t mldb_check64(const void *data, size_t size, uint64_t seed)
{
    (void)data, (void)size, (void)seed;
    return 0;
}

static void mldb_digest128(const void *data, size_t size, unsigned char *out)
{
    (void)data, (void)size, (void)out;
}
#endif

#ifndef MLDB_VERSION
#define MLDB_VERSION ""
#endif

#endif
