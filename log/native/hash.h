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

#if defined(__GNUC__) && defined(__x86_64__)
#define MLDB_LONG 240 /* xxHash takes vectors from here on */
uint64_t mldb_check64_avx2(const void *data, size_t size, uint64_t seed);
void mldb_digest128_avx2(const void *data, size_t size, unsigned char *out);
#define MLDB_TRY_AVX2(size, call)                                                                  \
    if ((size) > MLDB_LONG && __builtin_cpu_supports("avx2")) return call
#else
#define MLDB_TRY_AVX2(size, call)
#endif

static uint64_t mldb_check64(const void *data, size_t size, uint64_t seed)
{
    MLDB_TRY_AVX2(size, mldb_check64_avx2(data, size, seed));
    return XXH3_64bits_withSeed(data, size, seed);
}

/* The canonical form, big-endian, as the digests of FORMAT.md are stored. */
static void mldb_digest128(const void *data, size_t size, unsigned char *out)
{
    MLDB_TRY_AVX2(size, mldb_digest128_avx2(data, size, out));
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
