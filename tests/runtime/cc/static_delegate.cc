// A delegate that takes no operator, and graphs of static shapes only: for tests. To resize a
// tensor, a runtime then undoes all delegates, and applies them again.

#include "tflite_abi.h"

using ocs::tflite::Delegate;

extern "C" Delegate* tflite_plugin_create_delegate(const char* const*, const char* const*, size_t,
                                                   void (*)(const char*)) {
  auto* delegate = new Delegate();
  delegate->prepare = [](ocs::tflite::Context*, Delegate*) { return ocs::tflite::kOk; };
  return delegate;
}

extern "C" void tflite_plugin_destroy_delegate(Delegate* delegate) { delete delegate; }
