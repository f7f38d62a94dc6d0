/* lanes_avx2.h - the lane operations of lanes_plain.h on two 8-float registers. Included by isa_avx2.c only. */
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define LANES_NAME         "avx2"
#define LANES_SMALL_CHAINS 4
#define LANES_TILE_ROWS    6 /* 12 accumulator registers, 2 of weights, 1 of activations: 15 of 16 */
#define LANES_TILE_STRIPS  1
#define LANES_CODES_ROWS   4
#define LANES_CODES_STRIPS 1

typedef struct {
    __m256 a, b;
} v16;
typedef struct {
    __m256i a, b;
} v16i;

#define BOTH(op, x, y)                                                                                       \
    (v16) {                                                                                                  \
        op(x.a, y.a), op(x.b, y.b)                                                                           \
    }
#define BOTHI(op, x, y)                                                                                      \
    (v16i) {                                                                                                 \
        op(x.a, y.a), op(x.b, y.b)                                                                           \
    }

static inline v16 v_load(const float *p) {
    return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
static inline void v_store(float *p, v16 x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
static inline v16 v_load_n(const float *p, uint32_t n) {
    float t[16] = {0};
    memcpy(t, p, n * sizeof *p);
    return v_load(t);
}
static inline void v_store_n(float *p, v16 x, uint32_t n) {
    float t[16];
    v_store(t, x);
    memcpy(p, t, n * sizeof *p);
}
static inline v16 v_set1(float x) {
    return (v16){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
static inline v16 v_add(v16 x, v16 y) {
    return BOTH(_mm256_add_ps, x, y);
}
static inline v16 v_sub(v16 x, v16 y) {
    return BOTH(_mm256_sub_ps, x, y);
}
static inline v16 v_mul(v16 x, v16 y) {
    return BOTH(_mm256_mul_ps, x, y);
}
static inline v16 v_div(v16 x, v16 y) {
    return BOTH(_mm256_div_ps, x, y);
}
static inline v16 v_max(v16 x, v16 y) {
    return BOTH(_mm256_max_ps, x, y);
}
static inline v16 v_min(v16 x, v16 y) {
    return BOTH(_mm256_min_ps, x, y);
}
static inline v16 v_fma(v16 x, v16 y, v16 z) {
    return (v16){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
static inline v16 v_nfma(v16 x, v16 y, v16 z) {
    return (v16){_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)};
}
static inline v16 v_select_gt(v16 x, v16 y, v16 yes, v16 no) {
    return (v16){_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ)),
            _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ))};
}
static inline float v_sum(v16 x) {
    __m256 e = _mm256_add_ps(x.a, x.b);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    q = _mm_add_ss(q, _mm_movehdup_ps(q));
    return _mm_cvtss_f32(q);
}
/* Lanes l + (l + 8), then + (l + 4), of x and y: four of each. */
static inline __m256 fold_two(v16 x, v16 y) {
    __m256 a = _mm256_add_ps(x.a, x.b), b = _mm256_add_ps(y.a, y.b);
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}
/* ... then + (l + 2), + (l + 1): rows i and i + 1 of four vectors each become their eight sums. */
static inline __m256 fold_eight(const v16 *x, const v16 *y) {
    __m256 a = fold_two(x[0], y[0]), b = fold_two(x[1], y[1]), c = fold_two(x[2], y[2]),
           d = fold_two(x[3], y[3]);
    __m256 ab = _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
    __m256 cd = _mm256_add_ps(_mm256_shuffle_ps(c, d, 0x44), _mm256_shuffle_ps(c, d, 0xee));
    return _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x88), _mm256_shuffle_ps(ab, cd, 0xdd));
}
static inline v16 v_sum16(const v16 *a, uint32_t stride) {
    return (v16){fold_eight(a, a + stride), fold_eight(a + 2 * stride, a + 3 * stride)};
}
static inline void v_store_4(float *p, v16 x, uint32_t quarter) {
    __m256 h = quarter < 2 ? x.a : x.b;
    _mm_storeu_ps(p, quarter % 2 ? _mm256_extractf128_ps(h, 1) : _mm256_castps256_ps128(h));
}
static inline float v_highest(v16 x) {
    __m256 e = _mm256_max_ps(x.a, x.b);
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    q = _mm_max_ss(q, _mm_movehdup_ps(q));
    return _mm_cvtss_f32(q);
}

static inline v16i v_bits(v16 x) {
    return (v16i){_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)};
}
static inline v16 v_of_bits(v16i x) {
    return (v16){_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)};
}
static inline v16i vi_set1(uint32_t x) {
    return (v16i){_mm256_set1_epi32((int)x), _mm256_set1_epi32((int)x)};
}
static inline v16i vi_add(v16i x, v16i y) {
    return BOTHI(_mm256_add_epi32, x, y);
}
static inline v16i vi_count(uint32_t first) {
    v16i c = {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)};
    return vi_add(vi_set1(first), c);
}
static inline v16i vi_sub(v16i x, v16i y) {
    return BOTHI(_mm256_sub_epi32, x, y);
}
static inline v16i vi_mul(v16i x, v16i y) {
    return BOTHI(_mm256_mullo_epi32, x, y);
}
static inline v16i vi_and(v16i x, v16i y) {
    return BOTHI(_mm256_and_si256, x, y);
}
static inline v16i vi_xor(v16i x, v16i y) {
    return BOTHI(_mm256_xor_si256, x, y);
}
#define vi_shift_left(x, n)  ((v16i){_mm256_slli_epi32((x).a, n), _mm256_slli_epi32((x).b, n)})
#define vi_shift_right(x, n) ((v16i){_mm256_srli_epi32((x).a, n), _mm256_srli_epi32((x).b, n)})
#define vi_shift_sign(x, n)  ((v16i){_mm256_srai_epi32((x).a, n), _mm256_srai_epi32((x).b, n)})
static inline v16 v_of_int(v16i x) {
    return (v16){_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)};
}

static inline v16 v_load_bf16(const uint16_t *p) {
    v16i w = {_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)),
            _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p + 8)))};
    return v_of_bits(vi_shift_left(w, 16));
}
static inline v16 v_load_f16(const uint16_t *p) {
    return (v16){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
            _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8)))};
}
static inline void v_store_f16(uint16_t *p, v16 x) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}

static inline v16i vi_load(const uint8_t *p) {
    return (v16i){_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 32))};
}
static inline v16i vi_load_bytes(const uint8_t *p) {
    return (v16i){_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)),
            _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8)))};
}
static inline void vi_store_bytes(int8_t *p, v16i x, uint32_t n) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
    int8_t t[16];
    _mm_storeu_si128(
            (__m128i *)t, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
    memcpy(p, t, n < 16 ? n : 16);
}
static inline v16i vi_load_words(const int8_t *p) {
    return (v16i){_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p)),
            _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(p + 16)))};
}
static inline v16i vi_load_pairs(const int8_t *x, const int8_t *y) {
    const __m128i a = _mm_loadu_si128((const __m128i *)x), b = _mm_loadu_si128((const __m128i *)y);
    return (v16i){
            _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b)), _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(a, b))};
}
static inline v16i vi_dot2(v16i acc, v16i x, v16i y) {
    return (v16i){_mm256_add_epi32(acc.a, _mm256_madd_epi16(x.a, y.a)),
            _mm256_add_epi32(acc.b, _mm256_madd_epi16(x.b, y.b))};
}
/* The eight sums of eight vectors. */
static inline __m256i sum_eight(const v16i *x) {
    __m256i s[8];
    for (int i = 0; i < 8; i++)
        s[i] = _mm256_add_epi32(x[i].a, x[i].b);
    const __m256i low = _mm256_hadd_epi32(_mm256_hadd_epi32(s[0], s[1]), _mm256_hadd_epi32(s[2], s[3]));
    const __m256i high = _mm256_hadd_epi32(_mm256_hadd_epi32(s[4], s[5]), _mm256_hadd_epi32(s[6], s[7]));
    return _mm256_add_epi32(
            _mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31));
}
static inline v16i vi_sum16(const v16i *a) {
    return (v16i){sum_eight(a), sum_eight(a + 8)};
}
static inline int32_t vi_sum(v16i x) {
    const __m256i e = _mm256_add_epi32(x.a, x.b);
    __m128i q = _mm_add_epi32(_mm256_castsi256_si128(e), _mm256_extracti128_si256(e, 1));
    q = _mm_add_epi32(q, _mm_unpackhi_epi64(q, q));
    return _mm_cvtsi128_si32(_mm_add_epi32(q, _mm_shuffle_epi32(q, 1)));
}
static inline v16i vi_max(v16i x, v16i y) {
    return BOTHI(_mm256_max_epi32, x, y);
}
/* maddubs adds two products in 16 bits: exact for codes below 16, so codes up to 255 go as two nibbles. */
static inline __m256i dot4_nibbles(__m256i acc, __m256i codes, __m256i x, int weight) {
    return _mm256_add_epi32(
            acc, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16((short)weight)));
}
static inline v16i vi_dot4_nibbles(v16i acc, v16i codes, int32_t x) {
    const __m256i xs = _mm256_set1_epi32(x);
    return (v16i){dot4_nibbles(acc.a, codes.a, xs, 1), dot4_nibbles(acc.b, codes.b, xs, 1)};
}
static inline v16i vi_dot4_high(v16i acc, v16i codes, int32_t x) {
    const __m256i xs = _mm256_set1_epi32(x), nibble = _mm256_set1_epi8(15);
    return (v16i){dot4_nibbles(acc.a, _mm256_and_si256(_mm256_srli_epi16(codes.a, 4), nibble), xs, 16),
            dot4_nibbles(acc.b, _mm256_and_si256(_mm256_srli_epi16(codes.b, 4), nibble), xs, 16)};
}
static inline v16i vi_dot4(v16i acc, v16i codes, int32_t x) {
    const v16i nibble = vi_set1(0x0f0f0f0f);
    return vi_dot4_high(vi_dot4_nibbles(acc, vi_and(codes, nibble), x), codes, x);
}
