#include "cli/arguments.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstddef>

#include <CLI/CLI.hpp>

#include "core/near_names.h"

namespace cadre::cli {
namespace {

// Its name with those above it: "checkpoint verify".
std::string FullName(const CLI::App& app) {
  const CLI::App* parent = app.get_parent();
  if (parent == nullptr || parent->get_parent() == nullptr) return app.get_name();
  return FullName(*parent) + " " + app.get_name();
}

std::vector<const CLI::App*> VerbsOf(const CLI::App& app) {
  return app.get_subcommands([](const CLI::App*) { return true; });
}

const CLI::App* Chosen(const CLI::App& app) {
  const auto chosen = app.get_subcommands();
  return chosen.empty() ? &app : Chosen(*chosen.front());
}

std::string Unexpected(const CLI::App& app) {
  const CLI::App* verb = Chosen(app);
  const std::vector<std::string> rest = app.remaining(/*recurse=*/true);
  std::string text = fmt::format("{}: not expected: {}", FullName(*verb), fmt::join(rest, " "));
  const auto first = std::ranges::find_if(
      rest, [](const std::string& argument) { return argument.starts_with("--"); });
  if (first == rest.end()) return text;
  std::vector<std::string> options;
  for (const CLI::Option* option : verb->get_options()) {
    for (const std::string& name : option->get_lnames()) options.push_back("--" + name);
  }
  const std::string near = DidYouMean(*first, options);
  return near.empty() ? text : fmt::format("{}; {}: {}", text, *first, near);
}

}  // namespace

absl::Status CheckVerbs(const CLI::App& root, const std::vector<std::string>& arguments) {
  const CLI::App* app = &root;
  for (const std::string& argument : arguments) {
    const std::vector<const CLI::App*> verbs = VerbsOf(*app);
    if (verbs.empty() || argument.starts_with('-')) break;
    std::vector<std::string> names;
    const CLI::App* found = nullptr;
    for (const CLI::App* verb : verbs) {
      names.push_back(verb->get_name());
      if (names.back() == argument) found = verb;
    }
    if (found == nullptr) {
      const std::string near = DidYouMean(argument, names);
      return InvalidArgument(
          "{}: no verb of {}; {}", argument, FullName(*app),
          near.empty() ? fmt::format("allowed: {}", fmt::join(names, ", ")) : near);
    }
    app = found;
  }
  return absl::OkStatus();
}

void DropSeparator(std::vector<std::string>* arguments) {
  if (arguments->empty() || arguments->front() != "launch") return;
  for (size_t i = 1; i < arguments->size(); ++i) {
    const std::string& argument = (*arguments)[i];
    if (argument == "--") {
      arguments->erase(arguments->begin() + static_cast<std::ptrdiff_t>(i));
      return;
    }
    if (!argument.starts_with("--")) return;
    // All of launch's options have a value.
    if (argument != "--help" && argument.find('=') == std::string::npos) ++i;
  }
}

std::string ParseFailure(const CLI::App& app, const CLI::Error& error) {
  const bool extras = dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr;
  return (extras ? Unexpected(app) : std::string(error.what())) + "; --help says more";
}

}  // namespace cadre::cli
