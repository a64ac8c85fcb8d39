/* Sums the trees of an ensemble: for each row, the weight of the leaf that it reaches in every tree, in the trees' order.

   Rows are taken in blocks of 512. Each comparison "x <= threshold" becomes a comparison of two small integers: the
   code of a value is the number of the feature's thresholds that are below it. Codes keep the order of all floats, so
   every row reaches the leaf that the thresholds themselves would give.

       values  --encode-->  codes  --a tree's program-->  number of the leaf  --weights-->  sums

   A tree of up to 700 leaves is a program without branches: every node is evaluated for all 512 rows, children first,
   and gives the number of the leaf below it,

       leaf(node) = code <= node.code ? leaf(left) : leaf(right) + leaves(left)

   Larger trees are walked, 16 rows side by side. Sums are made in the ensemble's own type, tree after tree, and rows
   are never added to each other, so the result is that of a plain loop. Compile with -ffp-contract=off.

   Compiled once for each type and instruction set: REAL is float or double, NAME(x) adds both to a function's name.
   Nothing here recurses, and no index is checked: _program.py guarantees a valid program. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef REAL
#define REAL float
#define REAL_IS_FLOAT 1
#endif
#ifndef SUFFIX
#define SUFFIX f32_base
#endif
#define JOIN(a, b) a##_##b
#define JOINED(a, b) JOIN(a, b)
#define NAME(x) JOINED(x, SUFFIX)

enum { BLOCK = 512, LANES = 16, MAX_VECTOR_LEVELS = 8 };
enum { BYTES = 0, WORDS = 1, WALK = 2 }; /* how a tree is evaluated */

typedef struct {
    int32_t column;  /* of the matrix */
    int32_t n;       /* number of thresholds */
    int32_t levels;  /* 2^levels - 1 >= n: thresholds are padded with +inf to that number */
    int32_t unused;
    int64_t sorted;  /* where they begin, in rising order */
    int64_t tree;    /* where they begin in the order of a search tree, level by level; only up to 8 levels */
} Feature;

typedef struct {
    int32_t feature;
    int32_t first;   /* the code of a row is its rank less this, cut to 0..limit */
    int32_t nan;     /* the code of NaN */
    int32_t set;     /* -1, or where a set of ranks begins in `sets`: code 0 if the rank is in it, else 255 */
} CodeRow;

typedef struct {
    uint32_t row;         /* of the codes */
    uint16_t left, right; /* slots with the children's results; slot 0 holds zeros and stands for a leaf */
    uint16_t out;         /* slot for this node's result */
    uint16_t leaves;      /* number of leaves of the left child */
    uint8_t code;
    uint8_t unused[3];
} Node;

typedef struct {
    uint32_t left;   /* the right child follows it; a leaf points at itself */
    uint16_t column; /* of the codes */
    uint16_t code;   /* a leaf has the highest */
} Step;

typedef struct {
    int64_t first;   /* its first node or step */
    int64_t last;    /* behind its last one */
    int64_t values;  /* where its weights begin */
    int32_t leaves;
    int32_t kind;
    int32_t target;  /* to which its weights are added, if each leaf has one weight */
    int32_t depth;   /* the most comparisons of a row */
} Tree;

typedef struct {
    int32_t n_features, n_rows, n_columns, n_trees, n_targets, n_weights, n_slots, any_words;
    int64_t stride; /* columns of the matrix */
    const Feature *features;
    const CodeRow *rows;    /* codes of one byte, for BYTES and WORDS; sorted by feature */
    const CodeRow *columns; /* codes of two bytes, for WALK; sorted by feature */
    const REAL *thresholds;
    const uint8_t *sets;    /* bit r of a set: rank r is in it; at least 32 bytes each */
    const Node *nodes;
    const Step *steps;
    const uint32_t *leaf_of; /* of each step: the number of its leaf */
    const Tree *trees;
    const REAL *values;
} Program;

/* ---- codes ---- */

#if defined(__AVX512BW__) && defined(REAL_IS_FLOAT)
/* One level of the search tree, for 16 rows: its pivots are in registers. */
static inline __m512i descend(const float *pivots, int level, __m512i place, __m512 x) {
    const __m512i one = _mm512_set1_epi32(1);
    __m512 pivot;
    if (level <= 4) {
        pivot = _mm512_permutexvar_ps(place, _mm512_loadu_ps(pivots));
    } else if (level == 5) {
        pivot = _mm512_permutex2var_ps(_mm512_loadu_ps(pivots), place, _mm512_loadu_ps(pivots + 16));
    } else {
        __m512 low = _mm512_permutex2var_ps(_mm512_loadu_ps(pivots), place, _mm512_loadu_ps(pivots + 16));
        __m512 high = _mm512_permutex2var_ps(_mm512_loadu_ps(pivots + 32), place, _mm512_loadu_ps(pivots + 48));
        pivot = _mm512_mask_blend_ps(_mm512_test_epi32_mask(place, _mm512_set1_epi32(32)), low, high);
        if (level == 7) {
            low = _mm512_permutex2var_ps(_mm512_loadu_ps(pivots + 64), place, _mm512_loadu_ps(pivots + 80));
            high = _mm512_permutex2var_ps(_mm512_loadu_ps(pivots + 96), place, _mm512_loadu_ps(pivots + 112));
            high = _mm512_mask_blend_ps(_mm512_test_epi32_mask(place, _mm512_set1_epi32(32)), low, high);
            pivot = _mm512_mask_blend_ps(_mm512_test_epi32_mask(place, _mm512_set1_epi32(64)), pivot, high);
        }
    }
    place = _mm512_add_epi32(place, place);
    return _mm512_mask_add_epi32(place, _mm512_cmp_ps_mask(pivot, x, _CMP_LT_OQ), place, one);
}
#endif

/* Write how many thresholds of the feature are below each value; NaN gets 0. */
static void rank_values(const Program *p, const Feature *f, const REAL *x, int32_t *rank) {
#if defined(__AVX512BW__) && defined(REAL_IS_FLOAT)
    if (f->levels <= MAX_VECTOR_LEVELS) {
        const float *tree = p->thresholds + f->tree;
        for (int r = 0; r < BLOCK; r += 32) {
            __m512i a = _mm512_setzero_si512(), b = a;
            __m512 xa = _mm512_loadu_ps(x + r), xb = _mm512_loadu_ps(x + r + 16);
            for (int level = 0; level < f->levels; level++) {
                const float *pivots = tree + (1 << level) - 1;
                a = descend(pivots, level, a, xa);
                b = descend(pivots, level, b, xb);
            }
            _mm512_storeu_si512(rank + r, a);
            _mm512_storeu_si512(rank + r + 16, b);
        }
        return;
    }
#endif
    const REAL *sorted = p->thresholds + f->sorted;
    if (f->n <= 12) {
        memset(rank, 0, BLOCK * sizeof *rank);
        for (int k = 0; k < f->n; k++)
            for (int r = 0; r < BLOCK; r++) rank[r] += sorted[k] < x[r];
        return;
    }
#if defined(__AVX2__) && defined(REAL_IS_FLOAT)
    for (int r = 0; r < BLOCK; r += 16) {
        __m256 xa = _mm256_loadu_ps(x + r), xb = _mm256_loadu_ps(x + r + 8);
        __m256i a = _mm256_setzero_si256(), b = a;
        for (int half = (1 << f->levels) >> 1; half >= 1; half >>= 1) {
            const __m256i by = _mm256_set1_epi32(half);
            __m256 ta = _mm256_i32gather_ps(sorted + half - 1, a, 4), tb = _mm256_i32gather_ps(sorted + half - 1, b, 4);
            a = _mm256_add_epi32(a, _mm256_and_si256(_mm256_castps_si256(_mm256_cmp_ps(ta, xa, _CMP_LT_OQ)), by));
            b = _mm256_add_epi32(b, _mm256_and_si256(_mm256_castps_si256(_mm256_cmp_ps(tb, xb, _CMP_LT_OQ)), by));
        }
        _mm256_storeu_si256((__m256i *)(rank + r), a);
        _mm256_storeu_si256((__m256i *)(rank + r + 8), b);
    }
#else
    memset(rank, 0, BLOCK * sizeof *rank);
    for (int half = (1 << f->levels) >> 1; half >= 1; half >>= 1)
        for (int r = 0; r < BLOCK; r++) {
            int32_t at = rank[r];
            rank[r] = at + (-(int32_t)(sorted[at + half - 1] < x[r]) & half);
        }
#endif
}

static inline int in_set(const uint8_t *set, int32_t rank) { return set[rank >> 3] >> (rank & 7) & 1; }

/* Write 0 for each rank that is in the set and 255 for the others. */
static void look_up(const uint8_t *set, int32_t n, const int32_t *rank, uint8_t *code) {
#if defined(__AVX2__)
    if (n > 255) {
        for (int r = 0; r < BLOCK; r++) code[r] = in_set(set, rank[r]) ? 0 : 255;
        return;
    }
    /* Byte b of `set` has the ranks 8 b to 8 b + 7. Rearranged here by the low four bits of a rank: bit h of low[l]
       and high[l] says whether the ranks 16 h + l and 128 + 16 h + l are in it. */
    uint8_t low[16] = {0}, high[16] = {0};
    for (int r = 0; r < 128; r++) {
        low[r & 15] |= (uint8_t)((set[r >> 3] >> (r & 7) & 1) << (r >> 4));
        high[r & 15] |= (uint8_t)((set[16 + (r >> 3)] >> (r & 7) & 1) << (r >> 4));
    }
    const __m256i first = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)low));
    const __m256i second = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)high));
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i bits = _mm256_setr_epi8(1, 2, 4, 8, 16, 32, 64, -128, 1, 2, 4, 8, 16, 32, 64, -128, 1, 2, 4, 8, 16,
                                          32, 64, -128, 1, 2, 4, 8, 16, 32, 64, -128);
    for (int r = 0; r < BLOCK; r++) code[r] = (uint8_t)rank[r];
    for (int r = 0; r < BLOCK; r += 32) {
        __m256i v = _mm256_loadu_si256((const __m256i *)(code + r));
        __m256i l = _mm256_and_si256(v, nibble), h = _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble);
        __m256i row = _mm256_blendv_epi8(_mm256_shuffle_epi8(first, l), _mm256_shuffle_epi8(second, l), v);
        __m256i hit = _mm256_and_si256(row, _mm256_shuffle_epi8(bits, h));
        _mm256_storeu_si256((__m256i *)(code + r), _mm256_cmpeq_epi8(hit, _mm256_setzero_si256()));
    }
#else
    (void)n;
    for (int r = 0; r < BLOCK; r++) code[r] = in_set(set, rank[r]) ? 0 : 255;
#endif
}

/* Copy a column of the block out of the row-major matrix; rows behind the last are zero. */
static void take_column(const REAL *x, int64_t stride, int rows, REAL *column) {
    for (int r = 0; r < rows; r++) column[r] = x[(int64_t)r * stride];
    for (int r = rows; r < BLOCK; r++) column[r] = 0;
}

static void encode_bytes(const Program *p, const REAL *x, int rows, uint8_t *codes) {
    REAL column[BLOCK];
    int32_t rank[BLOCK];
    uint8_t nan[BLOCK];
    int32_t last = -1, any_nan = 0;
    for (int32_t i = 0; i < p->n_rows; i++) {
        const CodeRow *row = &p->rows[i];
        if (row->feature != last) {
            last = row->feature;
            const Feature *f = &p->features[last];
            take_column(x + f->column, p->stride, rows, column);
            rank_values(p, f, column, rank);
            any_nan = 0;
            for (int r = 0; r < BLOCK; r++) {
                nan[r] = column[r] != column[r] ? 255 : 0;
                any_nan |= nan[r];
            }
        }
        uint8_t *out = codes + (size_t)i * BLOCK;
        if (row->set >= 0) {
            look_up(p->sets + row->set, p->features[last].n, rank, out);
        } else {
            for (int r = 0; r < BLOCK; r++) {
                int32_t code = rank[r] - row->first;
                code = code < 0 ? 0 : code;
                out[r] = (uint8_t)(code > 255 ? 255 : code);
            }
        }
        if (any_nan) {
            const uint8_t code = (uint8_t)row->nan;
            for (int r = 0; r < BLOCK; r++) out[r] = (uint8_t)((out[r] & ~nan[r]) | (code & nan[r]));
        }
    }
}

static void encode_words(const Program *p, const REAL *x, int rows, uint16_t *codes) {
    REAL column[BLOCK];
    int32_t rank[BLOCK];
    int32_t last = -1;
    for (int32_t i = 0; i < p->n_columns; i++) {
        const CodeRow *row = &p->columns[i];
        if (row->feature != last) {
            last = row->feature;
            take_column(x + p->features[last].column, p->stride, rows, column);
            rank_values(p, &p->features[last], column, rank);
        }
        const uint8_t *set = row->set >= 0 ? p->sets + row->set : 0;
        for (int r = 0; r < BLOCK; r++) {
            int32_t code = rank[r];
            if (set) code = in_set(set, code) ? 0 : 255;
            if (column[r] != column[r]) code = row->nan;
            codes[(size_t)r * (size_t)p->n_columns + (size_t)i] = (uint16_t)code;
        }
    }
}

/* ---- trees ---- */

typedef uint8_t Bytes __attribute__((vector_size(16), aligned(16)));

static void run_bytes(const Node *node, const Node *end, const uint8_t *codes, uint8_t *slots) {
    for (; node < end; node++) {
        const uint8_t *c = codes + (size_t)node->row * BLOCK;
        const uint8_t *left = slots + (size_t)node->left * BLOCK, *right = slots + (size_t)node->right * BLOCK;
        uint8_t *out = slots + (size_t)node->out * BLOCK;
#if defined(__AVX512BW__)
        const __m512i code = _mm512_set1_epi8((char)node->code), leaves = _mm512_set1_epi8((char)node->leaves);
#pragma GCC unroll 8
        for (int r = 0; r < BLOCK; r += 64) {
            __mmask64 goes_right = _mm512_cmpgt_epu8_mask(_mm512_load_si512(c + r), code);
            _mm512_store_si512(out + r, _mm512_mask_add_epi8(_mm512_load_si512(left + r), goes_right,
                                                            _mm512_load_si512(right + r), leaves));
        }
#elif defined(__AVX2__)
        const __m256i code = _mm256_set1_epi8((char)node->code), leaves = _mm256_set1_epi8((char)node->leaves);
#pragma GCC unroll 8
        for (int r = 0; r < BLOCK; r += 32) {
            __m256i x = _mm256_load_si256((const __m256i *)(c + r));
            __m256i goes_left = _mm256_cmpeq_epi8(_mm256_min_epu8(x, code), x);
            __m256i other = _mm256_add_epi8(_mm256_load_si256((const __m256i *)(right + r)), leaves);
            _mm256_store_si256((__m256i *)(out + r),
                               _mm256_blendv_epi8(other, _mm256_load_si256((const __m256i *)(left + r)), goes_left));
        }
#else
        const Bytes code = ((Bytes){0} + 1) * node->code, leaves = ((Bytes){0} + 1) * (uint8_t)node->leaves;
#pragma GCC unroll 8
        for (int r = 0; r < BLOCK; r += 16) {
            Bytes x = *(const Bytes *)(c + r), a = *(const Bytes *)(left + r);
            Bytes b = *(const Bytes *)(right + r) + leaves, goes_right = (Bytes)(x > code);
            *(Bytes *)(out + r) = a ^ (goes_right & (a ^ b));
        }
#endif
    }
}

static void run_words(const Node *node, const Node *end, const uint8_t *codes, uint16_t *slots) {
    for (; node < end; node++) {
        const uint8_t *c = codes + (size_t)node->row * BLOCK;
        const uint16_t *left = slots + (size_t)node->left * BLOCK, *right = slots + (size_t)node->right * BLOCK;
        uint16_t *out = slots + (size_t)node->out * BLOCK;
#if defined(__AVX512BW__)
        const __m512i code = _mm512_set1_epi8((char)node->code), leaves = _mm512_set1_epi16((short)node->leaves);
#pragma GCC unroll 4
        for (int r = 0; r < BLOCK; r += 64) {
            __mmask64 right_ = _mm512_cmpgt_epu8_mask(_mm512_load_si512(c + r), code);
            _mm512_store_si512(out + r, _mm512_mask_add_epi16(_mm512_load_si512(left + r), (__mmask32)right_,
                                                             _mm512_load_si512(right + r), leaves));
            _mm512_store_si512(out + r + 32,
                               _mm512_mask_add_epi16(_mm512_load_si512(left + r + 32), (__mmask32)(right_ >> 32),
                                                     _mm512_load_si512(right + r + 32), leaves));
        }
#else
        const uint16_t leaves = node->leaves;
        const uint8_t code = node->code;
        for (int r = 0; r < BLOCK; r++) {
            uint16_t goes_right = (uint16_t) - (uint16_t)(c[r] > code);
            uint16_t a = left[r], b = (uint16_t)(right[r] + leaves);
            out[r] = (uint16_t)((goes_right & b) | (~goes_right & a));
        }
#endif
    }
}

/* Walk 16 rows at a time, so that 16 loads are under way; write the number of each row's leaf. */
static void walk(const Program *p, const Tree *tree, const uint16_t *codes, uint32_t *leaf) {
    const Step *steps = p->steps + tree->first;
    const uint32_t *leaf_of = p->leaf_of + tree->first;
    for (int r = 0; r < BLOCK; r += LANES) {
        const uint16_t *row[LANES];
        uint32_t at[LANES] = {0};
        for (int k = 0; k < LANES; k++) row[k] = codes + (size_t)(r + k) * (size_t)p->n_columns;
        for (int level = 0; level < tree->depth; level += 4) {
            uint32_t moved = 0;
            for (int i = 0; i < 4; i++)
                for (int k = 0; k < LANES; k++) {
                    const Step step = steps[at[k]];
                    const uint32_t next = step.left + (row[k][step.column] > step.code);
                    moved |= next ^ at[k];
                    at[k] = next;
                }
            if (!moved) break;
        }
        for (int k = 0; k < LANES; k++) leaf[r + k] = leaf_of[at[k]];
    }
}

/* ---- sums ---- */

static void add_bytes(const uint8_t *leaf, const REAL *values, int32_t leaves, REAL *sums) {
#if defined(__AVX512BW__) && defined(REAL_IS_FLOAT)
    if (leaves <= 64) {
        const __m512 a = _mm512_loadu_ps(values), b = _mm512_loadu_ps(values + 16);
        const __m512 c = _mm512_loadu_ps(values + 32), d = _mm512_loadu_ps(values + 48);
        const __m512i half = _mm512_set1_epi32(32);
        for (int r = 0; r < BLOCK; r += 16) {
            __m512i i = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(leaf + r)));
            __m512 weight = _mm512_permutex2var_ps(a, i, b);
            if (leaves > 32)
                weight = _mm512_mask_blend_ps(_mm512_test_epi32_mask(i, half), weight, _mm512_permutex2var_ps(c, i, d));
            _mm512_storeu_ps(sums + r, _mm512_add_ps(_mm512_loadu_ps(sums + r), weight));
        }
        return;
    }
#endif
    (void)leaves;
    for (int r = 0; r < BLOCK; r++) sums[r] += values[leaf[r]];
}

static void add_words(const uint16_t *leaf, const REAL *values, REAL *sums) {
    for (int r = 0; r < BLOCK; r++) sums[r] += values[leaf[r]];
}

static void add_walked(const uint32_t *leaf, const REAL *values, REAL *sums) {
    for (int r = 0; r < BLOCK; r++) sums[r] += values[leaf[r]];
}

typedef struct {
    uint8_t *codes;
    uint16_t *words;
    uint8_t *slots;
    uint32_t *leaf;
    REAL *sums;
} Buffers;

static void *lines(size_t bytes) { return aligned_alloc(64, (bytes + 127) / 64 * 64); }

static void free_buffers(Buffers *b) {
    free(b->codes);
    free(b->words);
    free(b->slots);
    free(b->leaf);
    free(b->sums);
}

static void run_tree(const Program *p, const Tree *tree, const Buffers *b) {
    const REAL *values = p->values + tree->values;
    const Node *first = p->nodes + tree->first, *last = p->nodes + tree->last;
    const size_t result = tree->kind != WALK && last > first ? BLOCK : 0; /* slot 1, or slot 0 for a single leaf */
    if (tree->kind == BYTES) {
        memset(b->slots, 0, BLOCK);
        run_bytes(first, last, b->codes, b->slots);
    } else if (tree->kind == WORDS) {
        memset(b->slots, 0, BLOCK * sizeof(uint16_t));
        run_words(first, last, b->codes, (uint16_t *)b->slots);
    } else {
        walk(p, tree, b->words, b->leaf);
    }
    for (int32_t w = 0; w < p->n_weights; w++) {
        REAL *sums = b->sums + (size_t)(p->n_weights == 1 ? tree->target : w) * BLOCK;
        const REAL *own = values + (size_t)w * (size_t)tree->leaves;
        if (tree->kind == BYTES)
            add_bytes(b->slots + result, own, tree->leaves, sums);
        else if (tree->kind == WORDS)
            add_words((const uint16_t *)b->slots + result, own, sums);
        else
            add_walked(b->leaf, own, sums);
    }
}

/* Write the sums of n rows, [n, n_targets]; return 0, or 1 if there is no memory. */
int NAME(trees_sum)(const Program *p, const REAL *x, int64_t n, REAL *out) {
    Buffers b = {
        lines((size_t)p->n_rows * BLOCK),
        lines((size_t)p->n_columns * BLOCK * sizeof(uint16_t)),
        lines((size_t)p->n_slots * BLOCK * (p->any_words ? 2 : 1)),
        lines(BLOCK * sizeof(uint32_t)),
        lines((size_t)p->n_targets * BLOCK * sizeof(REAL)),
    };
    const int failed = !b.codes || !b.words || !b.slots || !b.leaf || !b.sums;
    for (int64_t start = 0; start < n && !failed; start += BLOCK) {
        const int rows = n - start < BLOCK ? (int)(n - start) : BLOCK;
        const REAL *block = x + start * p->stride;
        encode_bytes(p, block, rows, b.codes);
        if (p->n_columns) encode_words(p, block, rows, b.words);
        memset(b.sums, 0, (size_t)p->n_targets * BLOCK * sizeof(REAL));
        for (int32_t t = 0; t < p->n_trees; t++) run_tree(p, &p->trees[t], &b);
        for (int32_t k = 0; k < p->n_targets; k++)
            for (int r = 0; r < rows; r++) out[(start + r) * p->n_targets + k] = b.sums[(size_t)k * BLOCK + (size_t)r];
    }
    free_buffers(&b);
    return failed;
}

/* ---- classes ---- */

enum { NONE = 0, LOGISTIC = 1, SOFTMAX = 2 };

/* As the runtime computes it, with the C library's expf. */
static float logistic(float x) {
    const float v = 1 / (1 + expf(-fabsf(x)));
    return x < 0 ? 1 - v : v;
}

static void softmax(float *v, int32_t n) {
    float largest = -3.402823466e+38F, sum = 0;
    for (int32_t k = 0; k < n; k++)
        if (v[k] > largest) largest = v[k];
    for (int32_t k = 0; k < n; k++) {
        v[k] = expf(v[k] - largest);
        sum += v[k];
    }
    for (int32_t k = 0; k < n; k++) v[k] /= sum;
}

/* Two classes with one sum: write the number of each row's class and both scores. A row is of class 1 if its sum is
   above `limit`; `rest` less the sum is the score of class 0. */
void NAME(trees_two_classes)(const REAL *sums, int64_t n, REAL base, int32_t post, REAL limit, REAL rest,
                             float *scores, int32_t *label) {
    for (int64_t i = 0; i < n; i++) {
        const REAL sum = sums[i] + base;
        label[i] = sum > limit;
        scores[2 * i] = post == LOGISTIC ? logistic((float)-sum) : (float)(rest != 0 ? rest - sum : -sum);
        scores[2 * i + 1] = post == LOGISTIC ? logistic((float)sum) : (float)sum;
    }
}

/* A sum for each class: write the number of each row's class and all scores. It is the first of the largest; of two
   classes, class 1 if its sum is above zero. */
void NAME(trees_classes)(const REAL *sums, int64_t n, int32_t classes, const REAL *base, int32_t post, float *scores,
                         int32_t *label) {
    for (int64_t i = 0; i < n; i++) {
        float *row = scores + i * classes;
        REAL largest = 0;
        int32_t best = 0;
        for (int32_t k = 0; k < classes; k++) {
            const REAL sum = sums[i * classes + k] + (base ? base[k] : 0);
            if (k == 0 || sum > largest) {
                largest = sum;
                best = k;
            }
            row[k] = (float)sum;
            if (post == LOGISTIC) row[k] = logistic(row[k]);
        }
        label[i] = classes == 2 ? sums[2 * i + 1] + (base ? base[1] : 0) > 0 : best;
        if (post == SOFTMAX) softmax(row, classes);
    }
}
