// Documents of a Megatron .bin/.idx pair, with their loss mask where `cadre data build --chat`
// wrote one: PREFIX.mask.bin/.idx, a u8 for each token.
#pragma once

#include <memory>
#include <string>

#include "core/status.h"
#include "training/document_source.h"

namespace cadre {

// Where the mask of the data set PREFIX lies.
std::string MaskPrefix(const std::string& prefix);

// kNotFound: no such pair. kDataLoss, kInvalidArgument: broken files, or a mask of other documents.
absl::StatusOr<std::shared_ptr<const DocumentSource>> OpenIndexedDocuments(
    const std::string& prefix);

}  // namespace cadre
