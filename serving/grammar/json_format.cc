#include "serving/grammar/json_format.h"

#include <fmt/core.h>

namespace cadre {
namespace {

constexpr std::string_view kTime = "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]";
constexpr std::string_view kZone = "(\\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])";
constexpr std::string_view kLabel = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?";
constexpr std::string_view kByte = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";

// Days that months have; 29 February in the leap years alone.
std::string Date() {
  const std::string leap =
      "([0-9][0-9](0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26]|00)00)-02-29";
  return "([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
         "|02-(0[1-9]|1[0-9]|2[0-8]))|" +
         leap + ")";
}

}  // namespace

absl::StatusOr<std::string> FormatPattern(std::string_view format) {
  std::string pattern;
  if (format == "date") {
    pattern = Date();
  } else if (format == "time") {
    pattern = fmt::format("{}{}", kTime, kZone);
  } else if (format == "date-time") {
    pattern = fmt::format("{}T{}{}", Date(), kTime, kZone);
  } else if (format == "duration") {
    const std::string time =
        "T([0-9]{1,9}H([0-9]{1,9}M)?([0-9]{1,9}S)?|[0-9]{1,9}M([0-9]{1,9}S)?"
        "|[0-9]{1,9}S)";
    const std::string day =
        "([0-9]{1,9}Y([0-9]{1,9}M([0-9]{1,9}D)?)?|[0-9]{1,9}M([0-9]{1,9}D)?"
        "|[0-9]{1,9}D)";
    pattern = fmt::format("P({}({})?|{}|[0-9]{{1,9}}W)", day, time, time);
  } else if (format == "uuid") {
    pattern = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}";
  } else if (format == "email") {
    pattern = fmt::format("[A-Za-z0-9_+-]+(\\.[A-Za-z0-9_+-]+)*@{}(\\.{})+", kLabel, kLabel);
  } else if (format == "hostname") {
    pattern = fmt::format("{}(\\.{})*", kLabel, kLabel);
  } else if (format == "ipv4") {
    pattern = fmt::format("{}(\\.{}){{3}}", kByte, kByte);
  } else if (format == "ipv6") {
    pattern = "[0-9a-fA-F]{1,4}(:[0-9a-fA-F]{1,4}){7}";
  } else if (format == "uri") {
    pattern =
        "[a-zA-Z][a-zA-Z0-9+.-]*://[A-Za-z0-9._~-]+(:[0-9]{1,5})?"
        "(/[A-Za-z0-9._~!$&'()*+,;=:@-]*)*(\\?[A-Za-z0-9._~!$&'()*+,;=:@/?-]*)?"
        "(#[A-Za-z0-9._~!$&'()*+,;=:@/?-]*)?";
  } else {
    return InvalidArgument(
        "the format '{}' is not supported; date, time, date-time, duration, uuid, email, hostname, "
        "ipv4, ipv6 and uri are",
        format);
  }
  return "^" + pattern + "$";
}

}  // namespace cadre
