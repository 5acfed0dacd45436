// What --model of the verbs that read a model may be.
#pragma once

#include <string>

namespace cadre::cli {

inline constexpr char kModelHelp[] =
    "Hugging Face folder, a training run's, whose newest checkpoint is taken, or a .gguf file";

// `path` itself, but where it has no model and is a run's folder or that of its checkpoints the
// newest of those; standard error then says which.
std::string ModelFolder(const std::string& path);

}  // namespace cadre::cli
