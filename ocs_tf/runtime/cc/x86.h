// What the x86 implementations share. Textual, like simd.h: included by each of them among the
// functions that are compiled for its instructions.

namespace ocs {
namespace {

inline __m256i Load32(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}

inline void Store32(__m256i x, void* to) { _mm256_storeu_si256(static_cast<__m256i*>(to), x); }

// 32 codes, each eight packed to the low bytes of 64 bits.
template <int kBits>
inline __m256i PackEights(__m256i codes) {
  if constexpr (kBits == 8) {
    return codes;
  } else {
    constexpr int kTwo = 1 << kBits;
    constexpr int kFour = 1 << (2 * kBits);
    const __m256i low = _mm256_and_si256(codes, _mm256_set1_epi8(static_cast<char>(kTwo - 1)));
    const __m256i weights = _mm256_set1_epi16(static_cast<int16_t>(1 + 256 * kTwo));
    const __m256i twos = _mm256_maddubs_epi16(weights, low);
    const __m256i fours = _mm256_madd_epi16(twos, _mm256_set1_epi32(1 + 65536 * kFour));
    const __m256i high = _mm256_slli_epi64(_mm256_srli_epi64(fours, 32), 4 * kBits);
    return _mm256_or_si256(_mm256_and_si256(fours, _mm256_set1_epi64x(0xffffffff)), high);
  }
}

// What the conversion to int32 makes of NaN and of floats that are too large or too small. The last
// are right that way, the others are not.
constexpr int32_t kUndefined = std::numeric_limits<int32_t>::min();

// Larger than any code, but not too large.
constexpr float kHuge = 1 << 30;

// The sum of four lanes, as docs/packed.md orders them.
inline float SumOfFour(__m128 lanes) {
  const __m128 twos = _mm_add_ps(lanes, _mm_movehl_ps(lanes, lanes));
  return _mm_cvtss_f32(_mm_add_ss(twos, _mm_movehdup_ps(twos)));
}

}  // namespace
}  // namespace ocs
