#include "run.h"

#include <algorithm>

namespace ocs {
namespace {

void RunRows(const RoundOp& op, const RowSizes& sizes, const float* x, float*, void* out) {
  Rounding rounding = {};
  rounding.inv_scale = op.inv_scale.data();
  rounding.scale = op.scale.data();
  rounding.per_channel = op.inv_scale.size() != 1;
  rounding.low = op.low;
  rounding.high = op.high;
  rounding.zero_point = op.zero_point;
  rounding.copies = op.copies.data();
  rounding.copy_count = op.copies.size();
  const Microkernels& best = BestMicrokernels();
  if (op.fake) {
    best.fake_quantize(x, sizes.rows, sizes.channels, rounding, static_cast<float*>(out));
  } else {
    best.quantize(x, sizes.rows, sizes.channels, rounding, static_cast<int8_t*>(out));
  }
}

// Appends the copies of channels to each row.
void Expand(const FullyConnectedOp& op, size_t rows, const float* x, float* out) {
  for (size_t b = 0; b < rows; ++b, x += op.channels) {
    out = std::copy_n(x, op.channels, out);
    for (const int32_t copy : op.copies) *out++ = x[copy];
  }
}

void RunRows(const FullyConnectedOp& op, const RowSizes& sizes, const float* x, float* scratch,
             void* out) {
  if (!op.copies.empty()) {
    Expand(op, sizes.rows, x, scratch);
    x = scratch;
  }
  auto* sums = static_cast<float*>(out);
  BestMicrokernels().multiply(op.packed, x, sizes.rows, sums);
  for (size_t b = 0; b < sizes.rows; ++b, sums += op.packed.rows) {
    for (size_t r = 0; r < op.packed.rows; ++r) {
      const float value = sums[r] * op.scale[r] + op.bias[r];
      sums[r] = std::min(std::max(value, op.low), op.high);  // in this order, NaN stays NaN
    }
  }
}

}  // namespace

void Run(const DequantizeOp& op, float* out) {
  MergedKernel kernel = {};
  kernel.packed = op.packed;
  kernel.pixels = op.pixels;
  kernel.channels = op.channels;
  kernel.copies = op.copies.data();
  kernel.copy_count = op.copies.size();
  kernel.scale = op.scale.data();
  kernel.scaling = op.scaling;
  DequantizeMerged(BestMicrokernels(), kernel, out);
}

void Run(const RowOp& op, const RowSizes& sizes, const float* x, float* scratch, void* out) {
  std::visit([&](const auto& of_rows) { RunRows(of_rows, sizes, x, scratch, out); }, op.op);
}

}  // namespace ocs
