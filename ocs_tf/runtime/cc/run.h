// Running the operators of the packed format. They are trusted: see operators.h.

#ifndef OCS_TF_RUNTIME_RUN_H_
#define OCS_TF_RUNTIME_RUN_H_

#include "operators.h"

namespace ocs {

// out: [op.elements].
void Run(const DequantizeOp& op, float* out);

// x: [rows, channels]; scratch: [sizes.scratch]; out: sizes.output_bytes, aligned for its type.
void Run(const RowOp& op, const RowSizes& sizes, const float* x, float* scratch, void* out);

}  // namespace ocs

#endif  // OCS_TF_RUNTIME_RUN_H_
