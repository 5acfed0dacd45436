#include "core/config_schema.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <cctype>
#include <vector>

#include "core/near_names.h"
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
  std::vector<std::string> all;
  for (int i = 0; i < type.field_count(); ++i) all.push_back(type.field(i)->name());
  if (std::string text = DidYouMean(name, all); !text.empty()) return text;
  return fmt::format("fields of {}: {}", type.name(), fmt::join(all, ", "));
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
