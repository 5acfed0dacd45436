// Between a stored Hugging Face tensor's slice and the logical parameter's elements that it fills:
// pure permutations of elements of any size. Callable from any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/parameters.h"

namespace cadre {

// Elements that this source fills; they follow those of the sources before it.
int64_t SliceElements(const ParamSource& source);
// Where the slice begins in the stored tensor, in elements.
int64_t SliceBegin(const ParamSource& source);

// Both arrays hold SliceElements(source) elements of `width` bytes (1, 2, 4 or 8) and do not
// overlap; no alignment is needed.
void StoredToLogical(const ParamSource& source, size_t width, const std::byte* stored,
                     std::byte* logical);
void LogicalToStored(const ParamSource& source, size_t width, const std::byte* logical,
                     std::byte* stored);

}  // namespace cadre
