// NEON of 64-bit Arm.

#include "instruction_sets.h"

#if defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))

#include <arm_neon.h>

#include <algorithm>
#include <cstring>

namespace ocs {
namespace {

struct Isa {
  static constexpr const char* kName = "neon";
  static constexpr size_t kWidth = 8;
  static constexpr size_t kSums = 8;
  struct Floats {
    float32x4_t low, high;
  };
  struct Ints {
    int32x4_t low, high;
  };

  static Floats Load(const float* from) { return {vld1q_f32(from), vld1q_f32(from + 4)}; }
  static Floats LoadPart(const float* from, size_t count) {
    float part[kWidth] = {};
    std::memcpy(part, from, count * sizeof(float));
    return Load(part);
  }
  static void Store(Floats x, float* to) {
    vst1q_f32(to, x.low);
    vst1q_f32(to + 4, x.high);
  }
  static void Stream(Floats x, float* to) { Store(x, to); }  // there is no intrinsic for it
  static void StorePart(Floats x, float* to, size_t count) {
    float part[kWidth];
    Store(x, part);
    std::memcpy(to, part, count * sizeof(float));
  }
  static void Fence() {}

  static Floats Broadcast(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
  static Floats Multiply(Floats a, Floats b) {
    return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)};
  }
  static Floats MultiplyAdd(Floats a, Floats b, Floats sum) {
    return {vfmaq_f32(sum.low, a.low, b.low), vfmaq_f32(sum.high, a.high, b.high)};
  }
  static float Sum(const Floats (&lanes)[4]) {
    const Floats by16 = Add(Add(lanes[0], lanes[2]), Add(lanes[1], lanes[3]));
    const float32x4_t by4 = vaddq_f32(by16.low, by16.high);
    const float32x2_t by2 = vadd_f32(vget_low_f32(by4), vget_high_f32(by4));
    return vget_lane_f32(by2, 0) + vget_lane_f32(by2, 1);
  }

  struct Range {
    explicit Range(const Rounding& rounding)
        : low(vdupq_n_s32(rounding.low)),
          high(vdupq_n_s32(rounding.high)),
          zero_point(vdupq_n_s16(static_cast<int16_t>(rounding.zero_point))) {}
    int32x4_t low, high;
    int16x8_t zero_point;
  };
  // The conversion takes NaN for 0, and what is no int32 for the nearest one.
  static Ints Nearest(Floats x) { return {vcvtnq_s32_f32(x.low), vcvtnq_s32_f32(x.high)}; }
  static bool Defined(const Ints (&)[4]) { return true; }
  static Ints NearestOfAny(Floats x) { return Nearest(x); }
  static Ints Clamp(Ints x, const Range& range) {
    return {vminq_s32(vmaxq_s32(x.low, range.low), range.high),
            vminq_s32(vmaxq_s32(x.high, range.low), range.high)};
  }
  static Floats ToFloats(Ints x) { return {vcvtq_f32_s32(x.low), vcvtq_f32_s32(x.high)}; }
  template <bool kStream>
  static void StoreCodes(const Ints (&x)[4], const Range& range, int8_t* to) {
    for (size_t i = 0; i < 4; ++i) vst1_s8(to + i * kWidth, ToCodes(x[i], range));
  }
  static void StoreCodesPart(Ints x, const Range& range, int8_t* to, size_t count) {
    int8_t part[kWidth];
    vst1_s8(part, ToCodes(x, range));
    std::memcpy(to, part, count);
  }

  template <int kBits>
  struct Decoder {
    void operator()(const uint8_t* bytes, Floats (&codes)[4]) const {
      for (size_t i = 0; i < 4; ++i) codes[i] = Eight(bytes + i * kBits);
    }

    static Floats Eight(const uint8_t* bytes) {
      const int16x8_t codes = UnpackEight<kBits>(bytes);
      return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(codes))),
              vcvtq_f32_s32(vmovl_s16(vget_high_s16(codes)))};
    }
  };

  template <int kBits>
  static void Unpack(const uint8_t* bytes, int8_t* codes) {
    for (size_t i = 0; i < 4; ++i) {
      vst1_s8(codes + 8 * i, vmovn_s16(UnpackEight<kBits>(bytes + i * kBits)));
    }
  }

  template <int kBits>
  static void Pack(const int8_t* codes, uint8_t* bytes) {
    static constexpr auto kOrder = MakeTable<uint8_t, 16>([](int i) {
      return i < 2 * kBits ? i / kBits * 8 + i % kBits : 0xff;
    });
    for (size_t i = 0; i < 2; ++i) {
      const uint8x16_t all = vreinterpretq_u8_s8(vld1q_s8(codes + 16 * i));
      vst1q_u8(bytes + 2 * kBits * i, vqtbl1q_u8(PackEights<kBits>(all), vld1q_u8(kOrder.values)));
    }
  }

 private:
  static Floats Add(Floats a, Floats b) {
    return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)};
  }

  static int8x8_t ToCodes(Ints x, const Range& range) {
    const Ints clamped = Clamp(x, range);
    const int16x8_t codes = vcombine_s16(vmovn_s32(clamped.low), vmovn_s32(clamped.high));
    return vmovn_s16(vaddq_s16(codes, range.zero_point));
  }

  // The two bytes that hold a code become its lane; the code is moved to the top and down again.
  template <int kBits>
  static int16x8_t UnpackEight(const uint8_t* bytes) {
    if constexpr (kBits == 8) {
      return vmovl_s8(vreinterpret_s8_u8(vld1_u8(bytes)));
    } else {
      static constexpr auto kPlaces = MakeTable<uint8_t, 16>(
          [](int i) { return WindowByte(kBits, i / 2) + i % 2; });
      static constexpr auto kShifts =
          MakeTable<int16_t, 8>([](int i) { return WindowShift(kBits, i); });
      const uint8x8_t eight = vld1_u8(bytes);
      const uint8x16_t windows = vqtbl1q_u8(vcombine_u8(eight, eight), vld1q_u8(kPlaces.values));
      const int16x8_t top = vshlq_s16(vreinterpretq_s16_u8(windows), vld1q_s16(kShifts.values));
      return vshrq_n_s16(top, 16 - kBits);
    }
  }

  // 16 codes, each eight packed to the low bytes of 64 bits: of each pair, then of each pair of
  // pairs, ..., the low bits stay and the others are shifted in behind them.
  template <int kBits>
  static uint8x16_t PackEights(uint8x16_t codes) {
    if constexpr (kBits == 8) {
      return codes;
    } else {
      const uint16x8_t ones = vreinterpretq_u16_u8(codes);
      const uint32x4_t twos =
          vreinterpretq_u32_u16(vsliq_n_u16(ones, vshrq_n_u16(ones, 8), kBits));
      const uint64x2_t fours =
          vreinterpretq_u64_u32(vsliq_n_u32(twos, vshrq_n_u32(twos, 16), 2 * kBits));
      return vreinterpretq_u8_u64(vsliq_n_u64(fours, vshrq_n_u64(fours, 32), 4 * kBits));
    }
  }
};

}  // namespace
}  // namespace ocs

#include "simd.h"

namespace ocs {

const Microkernels* NeonMicrokernels() { return &kMicrokernels; }

}  // namespace ocs

#else

namespace ocs {

const Microkernels* NeonMicrokernels() { return nullptr; }

}  // namespace ocs

#endif
