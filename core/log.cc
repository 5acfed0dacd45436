#include "core/log.h"

#include <spdlog/logger.h>
#include <spdlog/sinks/stdout_color_sinks.h>

namespace cadre {
namespace {

absl::StatusOr<spdlog::level::level_enum> ParseLevel(std::string_view level) {
  if (level == "trace") return spdlog::level::trace;
  if (level == "debug") return spdlog::level::debug;
  if (level == "info") return spdlog::level::info;
  if (level == "warn") return spdlog::level::warn;
  if (level == "error") return spdlog::level::err;
  if (level == "off") return spdlog::level::off;
  return InvalidArgument(
      "log level \"{}\" is unknown; allowed: trace, debug, info, warn, error, off", level);
}

}  // namespace

absl::StatusOr<std::shared_ptr<spdlog::logger>> MakeLogger(const std::string& name,
                                                           std::string_view level) {
  CADRE_ASSIGN_OR_RETURN(const spdlog::level::level_enum parsed, ParseLevel(level));
  auto logger = std::make_shared<spdlog::logger>(
      name, std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
  logger->set_level(parsed);
  logger->flush_on(spdlog::level::warn);
  logger->set_pattern("%Y-%m-%d %H:%M:%S.%e %^%L%$ %n: %v");
  return logger;
}

}  // namespace cadre
