/* Differences in byte planes put together and added to what they differ from: one pass over memory.
   The loops are plain so that compilers turn them into vector code. */
#ifndef MLDB_PLANES_H
#define MLDB_PLANES_H

#include <stddef.h>
#include <stdint.h>

typedef uint8_t mldb_word1;
typedef uint16_t __attribute__((aligned(1), may_alias)) mldb_word2;
typedef uint32_t __attribute__((aligned(1), may_alias)) mldb_word4;
typedef uint64_t __attribute__((aligned(1), may_alias)) mldb_word8;

#define MLDB_W1(p, n, i) ((uint8_t)(p)[i])
#define MLDB_W2(p, n, i) ((uint16_t)((p)[i] | (uint16_t)(p)[(n) + (i)] << 8))
#define MLDB_W4(p, n, i) ((uint32_t)MLDB_W2(p, n, i) | (uint32_t)MLDB_W2((p) + 2 * (n), n, i) << 16)
#define MLDB_W8(p, n, i) ((uint64_t)MLDB_W4(p, n, i) | (uint64_t)MLDB_W4((p) + 4 * (n), n, i) << 32)

/* Planes of `count` bytes at `planes`, one after another; `base` may be
   `made`, or NULL for zeros; nothing else overlaps. */
#define MLDB_FOLD(W)                                                                               \
    static void mldb_fold##W(const uint8_t *restrict planes, size_t count, size_t from, size_t n,  \
                             const void *base, void *made, int is_xor, uint64_t bias)              \
    {                                                                                              \
        mldb_word##W *out = (mldb_word##W *)made;                                                  \
        const mldb_word##W *below = (const mldb_word##W *)base, less = (mldb_word##W)bias;         \
        const uint8_t *restrict p = planes + from;                                                 \
        if (base == NULL)                                                                          \
            for (size_t i = 0; i < n; i++) out[i] = MLDB_W##W(p, count, i);                        \
        else if (base == made && is_xor)                                                           \
            for (size_t i = 0; i < n; i++) out[i] ^= MLDB_W##W(p, count, i);                       \
        else if (base == made)                                                                     \
            for (size_t i = 0; i < n; i++) out[i] += (mldb_word##W)(MLDB_W##W(p, count, i) - less);\
        else if (is_xor)                                                                           \
            for (size_t i = 0; i < n; i++) out[i] = below[i] ^ MLDB_W##W(p, count, i);             \
        else                                                                                       \
            for (size_t i = 0; i < n; i++)                                                         \
                out[i] = (mldb_word##W)(below[i] + (mldb_word##W)(MLDB_W##W(p, count, i) - less)); \
    }

MLDB_FOLD(1)
MLDB_FOLD(2)
MLDB_FOLD(4)
MLDB_FOLD(8)

static void mldb_fold(int width, const uint8_t *planes, size_t count, size_t from, size_t n,
                      const void *base, void *made, int is_xor, uint64_t bias)
{
    switch (width) {
    case 1: mldb_fold1(planes, count, from, n, base, made, is_xor, bias); break;
    case 2: mldb_fold2(planes, count, from, n, base, made, is_xor, bias); break;
    case 4: mldb_fold4(planes, count, from, n, base, made, is_xor, bias); break;
    default: mldb_fold8(planes, count, from, n, base, made, is_xor, bias);
    }
}

#endif
