// The loops that vector implementations share, over the operations of an `Isa`. Included once by
// each of them, behind its `Isa` and among the functions that are compiled for its instructions.
//
// An `Isa` has vectors `Floats` and `Ints` of kWidth elements, and for them
//   Load, LoadPart, Store, Stream, StorePart: parts are the first `count` elements;
//   Broadcast, Multiply, MultiplyAdd (rounded once), Sum (docs/packed.md, "Order of additions");
//   Nearest: to Ints, if all of four are Defined; else NearestOfAny: NaN to 0; Clamp and ToFloats;
//   StoreCodes<kStream> of four vectors, which clamps them and adds the zero point, and
//   StoreCodesPart of one;
//   Decoder<kBits>, to Floats, Unpack and Pack: kBlock codes at a time; kSums, as many vectors as
//   may be added to at the same time.
// Streaming stores go around the caches, to addresses that are aligned to kStreamAlignment bytes.

namespace ocs {
namespace {

using Floats = Isa::Floats;
using Ints = Isa::Ints;
constexpr size_t kWidth = Isa::kWidth;

// Codes of a step, which start at a whole byte.
constexpr size_t kBlock = 32;
static_assert(kBlock == kLanes && kBlock % kWidth == 0);
constexpr size_t kVectors = kBlock / kWidth;

template <int kBits>
constexpr size_t kBlockBytes = RowBytes(kBits, kBlock);

// Bytes that a block of packed codes is loaded with, at most; and stored.
constexpr ptrdiff_t kReach = 32;

// Outputs larger than caches are not worth keeping there.
constexpr size_t kStreamBytes = size_t{8} << 20;
constexpr size_t kStreamAlignment = 64;

// `bytes`, or if those of a block would pass `end`, a copy in `buffer`.
inline const uint8_t* Guard(const uint8_t* bytes, const uint8_t* end, uint8_t* buffer) {
  if (end - bytes >= kReach) return bytes;
  std::memset(buffer, 0, kReach);
  std::memcpy(buffer, bytes, static_cast<size_t>(end - bytes));
  return buffer;
}

template <int kBits>
void PackRow(const int8_t* codes, size_t count, uint8_t* bytes, const uint8_t* end) {
  size_t c = 0;
  for (; count - c >= kBlock && end - bytes >= kReach; c += kBlock, bytes += kBlockBytes<kBits>) {
    Isa::Pack<kBits>(codes + c, bytes);
  }
  for (; c < count; c += kBlock, bytes += kBlockBytes<kBits>) {
    const size_t some = std::min(kBlock, count - c);
    int8_t last_codes[kBlock] = {};
    uint8_t last_bytes[kReach];
    std::memcpy(last_codes, codes + c, some);
    Isa::Pack<kBits>(last_codes, last_bytes);
    std::memcpy(bytes, last_bytes, RowBytes(kBits, some));
  }
}

void Pack(const int8_t* codes, int bits, size_t rows, size_t columns, uint8_t* packed) {
  const size_t row_bytes = RowBytes(bits, columns);
  const uint8_t* end = packed + rows * row_bytes;
  ForBits(bits, [&](auto constant) {
    for (size_t r = 0; r < rows; ++r) {
      PackRow<decltype(constant)::value>(codes + r * columns, columns, packed + r * row_bytes,
                                         end);
    }
  });
}

template <int kBits>
void UnpackRow(const uint8_t* bytes, const uint8_t* end, size_t count, int8_t* codes) {
  size_t c = 0;
  for (; count - c >= kBlock && end - bytes >= kReach; c += kBlock, bytes += kBlockBytes<kBits>) {
    Isa::Unpack<kBits>(bytes, codes + c);
  }
  for (; c < count; c += kBlock, bytes += kBlockBytes<kBits>) {
    uint8_t buffer[kReach];
    int8_t last[kBlock];
    Isa::Unpack<kBits>(Guard(bytes, end, buffer), last);
    std::memcpy(codes + c, last, std::min(kBlock, count - c));
  }
}

void Unpack(const PackedCodes& packed, int8_t* codes) {
  const size_t row_bytes = RowBytes(packed.bits, packed.columns);
  const uint8_t* end = packed.data + packed.rows * row_bytes;
  ForBits(packed.bits, [&](auto constant) {
    for (size_t r = 0; r < packed.rows; ++r) {
      UnpackRow<decltype(constant)::value>(packed.data + r * row_bytes, end, packed.columns,
                                           codes + r * packed.columns);
    }
  });
}

template <bool kStream>
inline void Put(Floats values, float* out) {
  if constexpr (kStream) {
    Isa::Stream(values, out);
  } else {
    Isa::Store(values, out);
  }
}

template <int kBits, bool kPerColumn, bool kStream>
void DequantizeRow(const uint8_t* bytes, const uint8_t* end, size_t columns, const float* scale,
                   float* out) {
  const Isa::Decoder<kBits> decode;
  const Floats factor = Isa::Broadcast(*scale);
  size_t c = 0;
  Floats codes[kVectors];
  for (; columns - c >= kBlock && end - bytes >= kReach;
       c += kBlock, bytes += kBlockBytes<kBits>) {
    decode(bytes, codes);
    for (size_t i = 0; i < kVectors; ++i) {
      const size_t from = c + i * kWidth;
      Put<kStream>(Isa::Multiply(codes[i], kPerColumn ? Isa::Load(scale + from) : factor),
                   out + from);
    }
  }
  for (; c < columns; c += kBlock, bytes += kBlockBytes<kBits>) {
    uint8_t buffer[kReach];
    decode(Guard(bytes, end, buffer), codes);
    for (size_t i = 0, from = c; i < kVectors && from < columns; ++i, from += kWidth) {
      const size_t some = std::min(kWidth, columns - from);
      const Floats by = kPerColumn ? Isa::LoadPart(scale + from, some) : factor;
      Isa::StorePart(Isa::Multiply(codes[i], by), out + from, some);
    }
  }
}

bool Aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % kStreamAlignment == 0;
}

void Dequantize(const PackedCodes& packed, size_t columns, const float* scale, Scaling scaling,
                float* out) {
  if (packed.rows == 0 || columns == 0) return;
  const size_t row_bytes = RowBytes(packed.bits, packed.columns);
  const uint8_t* end = packed.data + packed.rows * row_bytes;
  const size_t step = scaling == Scaling::kRow ? 1 : 0;
  const size_t row_size = columns * sizeof(float);
  const bool stream = packed.rows * row_size >= kStreamBytes && Aligned(out) &&
                      row_size % kStreamAlignment == 0;
  ForBits(packed.bits, [&](auto constant) {
    constexpr int kBits = decltype(constant)::value;
    const auto row = scaling == Scaling::kColumn ? (stream ? DequantizeRow<kBits, true, true>
                                                           : DequantizeRow<kBits, true, false>)
                                                 : (stream ? DequantizeRow<kBits, false, true>
                                                           : DequantizeRow<kBits, false, false>);
    for (size_t r = 0; r < packed.rows; ++r) {
      row(packed.data + r * row_bytes, end, columns, scale + r * step, out + r * columns);
    }
  });
  if (stream) Isa::Fence();
}

// Rounds the elements of a row to `Out`: int8 codes, or float32 values of codes.
template <typename Out, bool kPerChannel, bool kStream>
class Rounder {
 public:
  explicit Rounder(const Rounding& rounding)
      : range_(rounding), inv_scales_(rounding.inv_scale), scales_(rounding.scale),
        inv_scale_(Isa::Broadcast(*inv_scales_)),
        scale_(Isa::Broadcast(kCodes ? 1.0f : *scales_)) {}

  // `channel` is that of the first of `count` elements.
  void Run(const float* x, size_t channel, size_t count, Out* out) const {
    size_t c = 0;
    if constexpr (kStream) {
      const size_t past = reinterpret_cast<uintptr_t>(out) % kStreamAlignment;
      c = std::min(count, (kStreamAlignment - past) % kStreamAlignment / sizeof(Out));
      Parts(x, channel, c, out);
    }
    for (; count - c >= kFour; c += kFour) Four(x + c, channel + c, out + c);
    Parts(x + c, channel + c, count - c, out + c);
  }

 private:
  static constexpr bool kCodes = sizeof(Out) == 1;
  static constexpr size_t kFour = 4 * kWidth;

  void Four(const float* x, size_t channel, Out* out) const {
    Floats scaled[4];
    Ints codes[4];
    for (size_t i = 0; i < 4; ++i) {
      const size_t c = i * kWidth;
      scaled[i] = Isa::Multiply(
          Isa::Load(x + c), kPerChannel ? Isa::Load(inv_scales_ + channel + c) : inv_scale_);
      codes[i] = Isa::Nearest(scaled[i]);
    }
    if (!Isa::Defined(codes)) {
      for (size_t i = 0; i < 4; ++i) codes[i] = Isa::NearestOfAny(scaled[i]);
    }
    if constexpr (kCodes) {
      Isa::StoreCodes<kStream>(codes, range_, out);
    } else {
      for (size_t i = 0; i < 4; ++i) {
        const size_t c = i * kWidth;
        Put<kStream>(Isa::Multiply(ToFloats(codes[i]),
                                   kPerChannel ? Isa::Load(scales_ + channel + c) : scale_),
                     out + c);
      }
    }
  }

  void Parts(const float* x, size_t channel, size_t count, Out* out) const {
    for (size_t c = 0; c < count; c += kWidth) {
      const size_t some = std::min(kWidth, count - c);
      const Floats inv_scale =
          kPerChannel ? Isa::LoadPart(inv_scales_ + channel + c, some) : inv_scale_;
      const Ints codes =
          Isa::NearestOfAny(Isa::Multiply(Isa::LoadPart(x + c, some), inv_scale));
      if constexpr (kCodes) {
        Isa::StoreCodesPart(codes, range_, out + c, some);
      } else {
        const Floats scale = kPerChannel ? Isa::LoadPart(scales_ + channel + c, some) : scale_;
        Isa::StorePart(Isa::Multiply(ToFloats(codes), scale), out + c, some);
      }
    }
  }

  Floats ToFloats(Ints codes) const { return Isa::ToFloats(Isa::Clamp(codes, range_)); }

  const Isa::Range range_;
  const float* const inv_scales_;
  const float* const scales_;
  const Floats inv_scale_;
  const Floats scale_;
};

template <typename Out, bool kPerChannel, bool kStream>
void RoundRows(const float* x, size_t rows, size_t channels, const Rounding& rounding,
               Out* out) {
  const Rounder<Out, kPerChannel, kStream> rounder(rounding);
  const int32_t* const copies = rounding.copies;
  const size_t copy_count = rounding.copy_count;
  constexpr size_t kSome = 512;
  float copied[kSome];
  for (size_t r = 0; r < rows; ++r) {
    if constexpr (kStream) {  // lines that are not written as a whole must be read before
      __builtin_prefetch(out + channels, 1);
      __builtin_prefetch(out + channels + copy_count, 1);
    }
    rounder.Run(x, 0, channels, out);
    out += channels;
    for (size_t i = 0; i < copy_count; i += kSome) {
      const size_t some = std::min(kSome, copy_count - i);
      for (size_t k = 0; k < some; ++k) copied[k] = x[copies[i + k]];
      rounder.Run(copied, channels + i, some, out + i);
    }
    x += channels;
    out += copy_count;
  }
}

template <typename Out>
void RoundAll(const float* x, size_t rows, size_t channels, const Rounding& rounding, Out* out) {
  const size_t size = rows * (channels + rounding.copy_count);
  if (size == 0) return;
  if (!rounding.per_channel && rounding.copy_count == 0) {
    channels *= rows;  // rows make no difference
    rows = 1;
  }
  const bool stream = size * sizeof(Out) >= kStreamBytes;
  const auto round = rounding.per_channel ? (stream ? RoundRows<Out, true, true>
                                                    : RoundRows<Out, true, false>)
                                          : (stream ? RoundRows<Out, false, true>
                                                    : RoundRows<Out, false, false>);
  round(x, rows, channels, rounding, out);
  if (stream) Isa::Fence();
}

void Quantize(const float* x, size_t rows, size_t channels, const Rounding& rounding,
              int8_t* out) {
  RoundAll(x, rows, channels, rounding, out);
}

void FakeQuantize(const float* x, size_t rows, size_t channels, const Rounding& rounding,
                  float* out) {
  RoundAll(x, rows, channels, rounding, out);
}

// `kRows` rows at once, so that what is loaded of a large `x` serves all of them.
template <int kBits, size_t kRows, size_t kBatch>
void MultiplyRows(const uint8_t* bytes, size_t row_bytes, const uint8_t* end, size_t columns,
                  const float* x, float* out, size_t out_step) {
  const Isa::Decoder<kBits> decode;
  Floats sums[kRows][kBatch][kVectors];
  for (auto& row : sums) {
    for (auto& lanes : row) {
      for (Floats& sum : lanes) sum = Isa::Broadcast(0.0f);
    }
  }
  Floats codes[kVectors];
  size_t c = 0;
  for (; columns - c >= kBlock &&
         static_cast<size_t>(end - bytes) >= (kRows - 1) * row_bytes + kReach;
       c += kBlock, bytes += kBlockBytes<kBits>) {
    for (size_t r = 0; r < kRows; ++r) {
      // What is read next, for processors that follow few streams.
      __builtin_prefetch(bytes + (r + kRows) * row_bytes);
      decode(bytes + r * row_bytes, codes);
      for (size_t b = 0; b < kBatch; ++b) {
        for (size_t i = 0; i < kVectors; ++i) {
          const Floats values = Isa::Load(x + b * columns + c + i * kWidth);
          sums[r][b][i] = Isa::MultiplyAdd(codes[i], values, sums[r][b][i]);
        }
      }
    }
  }
  for (; c < columns; c += kBlock, bytes += kBlockBytes<kBits>) {
    for (size_t r = 0; r < kRows; ++r) {
      uint8_t buffer[kReach];
      decode(Guard(bytes + r * row_bytes, end, buffer), codes);
      for (size_t b = 0; b < kBatch; ++b) {
        for (size_t i = 0, from = c; i < kVectors && from < columns; ++i, from += kWidth) {
          const size_t some = std::min(kWidth, columns - from);
          const Floats values = Isa::LoadPart(x + b * columns + from, some);
          sums[r][b][i] = Isa::MultiplyAdd(codes[i], values, sums[r][b][i]);
        }
      }
    }
  }
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t b = 0; b < kBatch; ++b) out[b * out_step + r] = Isa::Sum(sums[r][b]);
  }
}

template <int kBits, size_t kBatch>
void MultiplyAll(const PackedCodes& packed, const float* x, float* out) {
  constexpr size_t kMost = Isa::kSums / (kBatch * kVectors);
  constexpr size_t kRows = kBatch == 1 || kMost < 2 ? 1 : kMost < 4 ? 2 : 4;
  const size_t row_bytes = RowBytes(packed.bits, packed.columns);
  const uint8_t* end = packed.data + packed.rows * row_bytes;
  size_t r = 0;
  for (; packed.rows - r >= kRows; r += kRows) {
    MultiplyRows<kBits, kRows, kBatch>(packed.data + r * row_bytes, row_bytes, end,
                                       packed.columns, x, out + r, packed.rows);
  }
  for (; r < packed.rows; ++r) {
    MultiplyRows<kBits, 1, kBatch>(packed.data + r * row_bytes, row_bytes, end, packed.columns, x,
                                   out + r, packed.rows);
  }
}

void Multiply(const PackedCodes& packed, const float* x, size_t batch, float* out) {
  ForBits(packed.bits, [&](auto constant) {
    constexpr int kBits = decltype(constant)::value;
    while (batch > 0) {
      const size_t some = std::min(batch, size_t{4});
      switch (some) {
        case 1: MultiplyAll<kBits, 1>(packed, x, out); break;
        case 2: MultiplyAll<kBits, 2>(packed, x, out); break;
        case 3: MultiplyAll<kBits, 3>(packed, x, out); break;
        case 4: MultiplyAll<kBits, 4>(packed, x, out); break;
      }
      batch -= some;
      x += some * packed.columns;
      out += some * packed.rows;
    }
  });
}

constexpr Microkernels kMicrokernels = [] {
  Microkernels set = {};
  set.name = Isa::kName;
  set.pack = Pack;
  set.unpack = Unpack;
  set.dequantize = Dequantize;
  set.quantize = Quantize;
  set.fake_quantize = FakeQuantize;
  set.multiply = Multiply;
  return set;
}();

}  // namespace
}  // namespace ocs
