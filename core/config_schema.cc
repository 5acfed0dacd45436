#include "core/config_schema.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <numeric>
#include <utility>
#include <vector>

#include "proto/options.pb.h"

namespace cadre {
namespace pb = google::protobuf;
namespace {

std::string LowerCase(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

// DecayKind: "DECAY_KIND_"; ComputeDType: "COMPUTE_DTYPE_". Compared without underscores, since
// where they stand inside an abbreviation is a matter of taste.
size_t PrefixLength(const std::string& type_name, const std::string& value_name) {
  size_t i = 0;
  for (const char c : LowerCase(type_name)) {
    while (i < value_name.size() && value_name[i] == '_') ++i;
    if (i == value_name.size() || std::tolower(static_cast<unsigned char>(value_name[i])) != c)
      return 0;
    ++i;
  }
  return i < value_name.size() && value_name[i] == '_' ? i + 1 : 0;
}

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i + 1);
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t substituted = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({substituted, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

}  // namespace

std::string ShortName(const pb::EnumValueDescriptor& value) {
  const std::string& name = value.name();
  return LowerCase(name.substr(PrefixLength(value.type()->name(), name)));
}

const pb::EnumValueDescriptor* FindEnumValue(const pb::EnumDescriptor& type,
                                             std::string_view name) {
  for (int i = 0; i < type.value_count(); ++i) {
    if (ShortName(*type.value(i)) == name) return type.value(i);
  }
  return nullptr;
}

std::string EnumNames(const pb::EnumDescriptor& type) {
  std::vector<std::string> names;
  for (int i = 0; i < type.value_count(); ++i) names.push_back(ShortName(*type.value(i)));
  return fmt::format("{}", fmt::join(names, ", "));
}

std::string SuggestFields(const pb::Descriptor& type, std::string_view name) {
  std::vector<std::pair<size_t, std::string>> near;
  std::vector<std::string> all;
  name = name.substr(0, 100);
  for (int i = 0; i < type.field_count(); ++i) {
    const std::string& field = type.field(i)->name();
    all.push_back(field);
    const size_t distance = EditDistance(name, field);
    const bool part = name.size() >= 3 && field.find(name) != std::string::npos;
    if (distance <= std::max<size_t>(1, field.size() / 3) || part)
      near.emplace_back(distance, field);
  }
  if (near.empty()) return fmt::format("fields of {}: {}", type.name(), fmt::join(all, ", "));
  std::sort(near.begin(), near.end());
  std::vector<std::string> names;
  for (size_t i = 0; i < near.size() && i < 3; ++i) names.push_back(near[i].second);
  return fmt::format("did you mean {}?", fmt::join(names, ", "));
}

bool Bounds::Hold(double value) const { return (!min || value >= *min) && (!max || value <= *max); }

std::string Bounds::Text() const {
  if (min && max) return fmt::format("{} to {}", *min, *max);
  if (min) return fmt::format("at least {}", *min);
  return max ? fmt::format("at most {}", *max) : "any number";
}

Bounds FieldBounds(const pb::FieldDescriptor& field) {
  Bounds bounds;
  const pb::FieldOptions& options = field.options();
  if (options.HasExtension(config::min)) bounds.min = options.GetExtension(config::min);
  if (options.HasExtension(config::max)) bounds.max = options.GetExtension(config::max);
  return bounds;
}

}  // namespace cadre
