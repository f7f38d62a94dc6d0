/* lanes_avx512.h - the lane operations of lanes_plain.h on one 16-float register. Included by isa_avx512.c and,
 * compiled with the byte products of VNNI, by isa_avx512_vnni.c. */
#pragma once

#include <immintrin.h>
#include <stdint.h>

#define LANES_NAME         "avx512"
#define LANES_SMALL_CHAINS 2  /* hide the latency of fma; more streams than this measure slower */
#define LANES_TILE_ROWS    12 /* 24 accumulators, 2 of weights: 26 of 32 registers */
#define LANES_TILE_STRIPS  2
#define LANES_CODES_ROWS   12
#define LANES_CODES_STRIPS 2

typedef __m512 v16;
typedef __m512i v16i;

static inline v16 v_load(const float *p) {
    return _mm512_loadu_ps(p);
}
static inline void v_store(float *p, v16 x) {
    _mm512_storeu_ps(p, x);
}
static inline v16 v_load_n(const float *p, uint32_t n) {
    return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
static inline void v_store_n(float *p, v16 x, uint32_t n) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), x);
}
static inline v16 v_set1(float x) {
    return _mm512_set1_ps(x);
}
static inline v16 v_add(v16 x, v16 y) {
    return _mm512_add_ps(x, y);
}
static inline v16 v_sub(v16 x, v16 y) {
    return _mm512_sub_ps(x, y);
}
static inline v16 v_mul(v16 x, v16 y) {
    return _mm512_mul_ps(x, y);
}
static inline v16 v_div(v16 x, v16 y) {
    return _mm512_div_ps(x, y);
}
static inline v16 v_max(v16 x, v16 y) {
    return _mm512_max_ps(x, y);
}
static inline v16 v_min(v16 x, v16 y) {
    return _mm512_min_ps(x, y);
}
static inline v16 v_fma(v16 x, v16 y, v16 z) {
    return _mm512_fmadd_ps(x, y, z);
}
static inline v16 v_nfma(v16 x, v16 y, v16 z) {
    return _mm512_fnmadd_ps(x, y, z);
}
static inline v16 v_select_gt(v16 x, v16 y, v16 yes, v16 no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, y, _CMP_GT_OQ), no, yes);
}
static inline float v_sum(v16 x) {
    __m256 e = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    q = _mm_add_ss(q, _mm_movehdup_ps(q));
    return _mm_cvtss_f32(q);
}
/* Lanes l + (l + 8), then + (l + 4), of four vectors: four lanes of each, in order. */
static inline v16 fold_four(v16 a, v16 b, v16 c, v16 d) {
    v16 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    v16 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    return _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
}
/* Lane 4 i + j of the result is v_sum(a[i * stride + j]): the same tree, sixteen at once. */
static inline v16 v_sum16(const v16 *a, uint32_t stride) {
    const v16 *b = a + stride, *c = b + stride, *d = c + stride;
    v16 w = fold_four(a[0], b[0], c[0], d[0]), x = fold_four(a[1], b[1], c[1], d[1]);
    v16 y = fold_four(a[2], b[2], c[2], d[2]), z = fold_four(a[3], b[3], c[3], d[3]);
    v16 wx = _mm512_add_ps(_mm512_shuffle_ps(w, x, 0x44), _mm512_shuffle_ps(w, x, 0xee));
    v16 yz = _mm512_add_ps(_mm512_shuffle_ps(y, z, 0x44), _mm512_shuffle_ps(y, z, 0xee));
    return _mm512_add_ps(_mm512_shuffle_ps(wx, yz, 0x88), _mm512_shuffle_ps(wx, yz, 0xdd));
}
static inline void v_store_4(float *p, v16 x, uint32_t quarter) {
    __m256 h = quarter < 2 ? _mm512_castps512_ps256(x) : _mm512_extractf32x8_ps(x, 1);
    _mm_storeu_ps(p, quarter % 2 ? _mm256_extractf128_ps(h, 1) : _mm256_castps256_ps128(h));
}
static inline float v_highest(v16 x) {
    return _mm512_reduce_max_ps(x);
}

static inline v16i v_bits(v16 x) {
    return _mm512_castps_si512(x);
}
static inline v16 v_of_bits(v16i x) {
    return _mm512_castsi512_ps(x);
}
static inline v16i vi_set1(uint32_t x) {
    return _mm512_set1_epi32((int)x);
}
static inline v16i vi_add(v16i x, v16i y) {
    return _mm512_add_epi32(x, y);
}
static inline v16i vi_count(uint32_t first) {
    return vi_add(vi_set1(first), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}
static inline v16i vi_sub(v16i x, v16i y) {
    return _mm512_sub_epi32(x, y);
}
static inline v16i vi_mul(v16i x, v16i y) {
    return _mm512_mullo_epi32(x, y);
}
static inline v16i vi_and(v16i x, v16i y) {
    return _mm512_and_si512(x, y);
}
static inline v16i vi_xor(v16i x, v16i y) {
    return _mm512_xor_si512(x, y);
}
#define vi_shift_left(x, n)  _mm512_slli_epi32(x, n)
#define vi_shift_right(x, n) _mm512_srli_epi32(x, n)
#define vi_shift_sign(x, n)  _mm512_srai_epi32(x, n)
static inline v16 v_of_int(v16i x) {
    return _mm512_cvtepi32_ps(x);
}

static inline v16 v_load_bf16(const uint16_t *p) {
    __m512i w = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return v_of_bits(vi_shift_left(w, 16));
}
static inline v16 v_load_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
static inline void v_store_f16(uint16_t *p, v16 x) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

static inline v16i vi_load(const uint8_t *p) {
    return _mm512_loadu_si512(p);
}
static inline v16i vi_load_bytes(const uint8_t *p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
}
static inline void vi_store_bytes(int8_t *p, v16i x, uint32_t n) {
    _mm512_mask_cvtepi32_storeu_epi8(p, (__mmask16)(n < 16 ? (1u << n) - 1 : 0xffff), x);
}
static inline v16i vi_load_words(const int8_t *p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)p));
}
static inline v16i vi_load_pairs(const int8_t *x, const int8_t *y) {
    const __m128i a = _mm_loadu_si128((const __m128i *)x), b = _mm_loadu_si128((const __m128i *)y);
    return _mm512_cvtepi8_epi16(_mm256_set_m128i(_mm_unpackhi_epi8(a, b), _mm_unpacklo_epi8(a, b)));
}
static inline v16i vi_dot2(v16i acc, v16i x, v16i y) {
#ifdef __AVX512VNNI__
    return _mm512_dpwssd_epi32(acc, x, y);
#else
    return _mm512_add_epi32(acc, _mm512_madd_epi16(x, y));
#endif
}
/* Quarters of four vectors are added: four sums to go of each, in order. */
static inline v16i sum_quarters(const v16i *a) {
    const __m512i ab =
            _mm512_add_epi32(_mm512_shuffle_i32x4(a[0], a[1], 0x44), _mm512_shuffle_i32x4(a[0], a[1], 0xee));
    const __m512i cd =
            _mm512_add_epi32(_mm512_shuffle_i32x4(a[2], a[3], 0x44), _mm512_shuffle_i32x4(a[2], a[3], 0xee));
    return _mm512_add_epi32(_mm512_shuffle_i32x4(ab, cd, 0x88), _mm512_shuffle_i32x4(ab, cd, 0xdd));
}
/* Quarter i of the sum: sums of two vectors' halves, x first. */
static inline v16i sum_halves(v16i x, v16i y) {
    return _mm512_add_epi32(_mm512_unpacklo_epi32(x, y), _mm512_unpackhi_epi32(x, y));
}
static inline v16i vi_sum16(const v16i *a) {
    /* a[0], a[4], a[8], a[12] become the first lanes of the quarters, and so on */
    const v16i of[4][4] = {{a[0], a[4], a[8], a[12]}, {a[1], a[5], a[9], a[13]}, {a[2], a[6], a[10], a[14]},
            {a[3], a[7], a[11], a[15]}};
    const v16i x = sum_halves(sum_quarters(of[0]), sum_quarters(of[1])),
               y = sum_halves(sum_quarters(of[2]), sum_quarters(of[3]));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(x, y), _mm512_unpackhi_epi64(x, y));
}
static inline int32_t vi_sum(v16i x) {
    return _mm512_reduce_add_epi32(x);
}
static inline v16i vi_max(v16i x, v16i y) {
    return _mm512_max_epi32(x, y);
}
#ifdef __AVX512VNNI__
static inline v16i vi_dot4(v16i acc, v16i codes, int32_t x) {
    return _mm512_dpbusd_epi32(acc, codes, _mm512_set1_epi32(x));
}
static inline v16i vi_dot4_nibbles(v16i acc, v16i codes, int32_t x) {
    return vi_dot4(acc, codes, x);
}
static inline v16i vi_dot4_high(v16i acc, v16i codes, int32_t x) {
    return vi_dot4(acc, vi_and(codes, vi_set1(0xf0f0f0f0)), x);
}
#else
/* maddubs adds two products in 16 bits: exact for codes below 16, so codes up to 255 go as two nibbles. */
static inline v16i vi_dot4_nibbles(v16i acc, v16i codes, int32_t x) {
    return _mm512_add_epi32(
            acc, _mm512_madd_epi16(_mm512_maddubs_epi16(codes, _mm512_set1_epi32(x)), _mm512_set1_epi16(1)));
}
static inline v16i vi_dot4_high(v16i acc, v16i codes, int32_t x) {
    const __m512i high = _mm512_and_si512(_mm512_srli_epi16(codes, 4), _mm512_set1_epi8(15));
    return _mm512_add_epi32(
            acc, _mm512_madd_epi16(_mm512_maddubs_epi16(high, _mm512_set1_epi32(x)), _mm512_set1_epi16(16)));
}
static inline v16i vi_dot4(v16i acc, v16i codes, int32_t x) {
    return vi_dot4_high(vi_dot4_nibbles(acc, _mm512_and_si512(codes, _mm512_set1_epi8(15)), x), codes, x);
}
#endif
