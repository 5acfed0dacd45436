// What is wrong with a command line, in one line.
#pragma once

#include <string>
#include <vector>

#include "core/status.h"

namespace CLI {
class App;
class Error;
}  // namespace CLI

namespace cadre::cli {

// kInvalidArgument where the first of `arguments`, or the one after it where that verb has verbs
// of its own, names none; with those that it may mean.
absl::Status CheckVerbs(const CLI::App& root, const std::vector<std::string>& arguments);

// `launch OPTIONS -- VERB`, as torchrun's users write it, without the `--`.
void DropSeparator(std::vector<std::string>* arguments);

// Why `app` could not be parsed: CLI11's own words, but what was not expected in the order given
// and with the option that it may mean.
std::string ParseFailure(const CLI::App& app, const CLI::Error& error);

}  // namespace cadre::cli
