#include "core/config.h"

#include <google/protobuf/message.h>

#include <charconv>

#include "core/config_fill.h"
#include "core/config_schema.h"
#include "core/file.h"

namespace cadre {
namespace pb = google::protobuf;
namespace {

// One step of an override's path: `name` or `name[3]`.
struct Step {
  std::string name;
  int index = -1;
};

absl::StatusOr<std::vector<Step>> SplitPath(std::string_view path, const std::string& origin) {
  std::vector<Step> steps;
  while (true) {
    const size_t dot = path.find('.');
    std::string_view part = path.substr(0, dot);
    Step step;
    if (const size_t open = part.find('['); open != std::string_view::npos) {
      const char* begin = part.data() + open + 1;
      const char* end = part.data() + part.size() - 1;
      const auto [stop, error] = std::from_chars(begin, std::max(begin, end), step.index);
      if (part.back() != ']' || error != std::errc() || stop != end || step.index < 0) {
        return InvalidArgument("{}: \"{}\": an index is written name[0]", origin, part);
      }
      part = part.substr(0, open);
    }
    step.name = part;
    if (step.name.empty()) return InvalidArgument("{}: an empty name in the path", origin);
    steps.push_back(std::move(step));
    if (dot == std::string_view::npos) return steps;
    path.remove_prefix(dot + 1);
  }
}

// String fields take the text as it is, so that paths and prompts need no quoting.
absl::StatusOr<YamlNode> ReadOverrideValue(std::string_view text, const pb::FieldDescriptor& field,
                                           const std::string& origin) {
  const bool verbatim = field.cpp_type() == pb::FieldDescriptor::CPPTYPE_STRING &&
                        !(field.is_repeated() && text.starts_with('[')) && !text.starts_with('"') &&
                        !text.starts_with('\'') && text != "null";
  if (!verbatim) return ParseYamlTree(text, origin);
  YamlNode node;
  node.kind = YamlNode::Kind::kScalar;
  node.scalar = text;
  return node;
}

// Walks one override's path down the message, making what is absent on the way.
class OverrideWalk {
 public:
  OverrideWalk(const std::string& origin, std::string_view value, pb::Message* message)
      : origin_(origin), place_{&origin, false, ""}, value_(value), message_(message) {}

  absl::Status Run(const std::vector<Step>& steps) {
    for (size_t i = 0; i < steps.size(); ++i) {
      CADRE_RETURN_IF_ERROR(Enter(steps[i], i + 1 == steps.size()));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Enter(const Step& step, bool last) {
    place_ = place_.Field(step.name);
    if (map_ != nullptr) {
      pb::Message* entry = MapEntry(step.name, map_, message_);
      const pb::FieldDescriptor* value = map_->message_type()->map_value();
      map_ = nullptr;
      return Descend(entry, value, step, last);
    }
    const pb::FieldDescriptor* field = message_->GetDescriptor()->FindFieldByName(step.name);
    if (field == nullptr) {
      return place_.Error(YamlNode(), "unknown field; {}",
                          SuggestFields(*message_->GetDescriptor(), step.name));
    }
    return Descend(message_, field, step, last);
  }

  absl::Status Descend(pb::Message* owner, const pb::FieldDescriptor* field, const Step& step,
                       bool last) {
    if (step.index >= 0) return Index(owner, field, step.index, last);
    if (last) {
      CADRE_ASSIGN_OR_RETURN(const YamlNode node, ReadOverrideValue(value_, *field, origin_));
      return FillField(node, place_, field, owner);
    }
    if (field->is_map()) {
      map_ = field;
      message_ = owner;
      return absl::OkStatus();
    }
    if (field->is_repeated()) return place_.Error(YamlNode(), "is a list; name an element: [0]");
    if (field->cpp_type() != pb::FieldDescriptor::CPPTYPE_MESSAGE) {
      return place_.Error(YamlNode(), "is a value and has no fields of its own");
    }
    message_ = owner->GetReflection()->MutableMessage(owner, field);
    return absl::OkStatus();
  }

  absl::Status Index(pb::Message* owner, const pb::FieldDescriptor* field, int index, bool last) {
    if (!field->is_repeated() || field->is_map()) {
      return place_.Error(YamlNode(), "is no list, so [{}] does not apply", index);
    }
    const pb::Reflection* reflection = owner->GetReflection();
    const int size = reflection->FieldSize(*owner, field);
    if (index > size) {
      return place_.Error(YamlNode(), "index {} is out of range; allowed: 0 to {} ({} appends)",
                          index, size, size);
    }
    place_ = place_.Element(static_cast<size_t>(index));
    if (field->cpp_type() == pb::FieldDescriptor::CPPTYPE_MESSAGE) {
      pb::Message* element = index < size ? reflection->MutableRepeatedMessage(owner, field, index)
                                          : reflection->AddMessage(owner, field);
      message_ = element;
      if (!last) return absl::OkStatus();
      CADRE_ASSIGN_OR_RETURN(const YamlNode node, ParseYamlTree(value_, origin_));
      return FillMessage(node, place_, element);
    }
    if (!last) return place_.Error(YamlNode(), "is a value and has no fields of its own");
    CADRE_ASSIGN_OR_RETURN(const YamlNode node, ReadOverrideValue(value_, *field, origin_));
    CADRE_RETURN_IF_ERROR(FillValue(node, place_, field, owner));
    if (index < size) {
      reflection->SwapElements(owner, field, index, size);
      reflection->RemoveLast(owner, field);
    }
    return absl::OkStatus();
  }

  const std::string& origin_;
  Place place_;
  std::string_view value_;
  pb::Message* message_;
  const pb::FieldDescriptor* map_ = nullptr;  // of message_, when the next step is a key of it
};

absl::Status ApplyOverride(const std::string& text, pb::Message* message) {
  const std::string origin = fmt::format("--set {}", text.substr(0, 200));
  const size_t equals = text.find('=');
  if (equals == std::string::npos) {
    return InvalidArgument("{}: is not written path=value", origin);
  }
  CADRE_ASSIGN_OR_RETURN(const std::vector<Step> steps,
                         SplitPath(std::string_view(text).substr(0, equals), origin));
  return OverrideWalk(origin, std::string_view(text).substr(equals + 1), message).Run(steps);
}

}  // namespace

absl::Status LoadYaml(const std::string& path, std::span<const std::string> overrides,
                      pb::Message* message) {
  const absl::StatusOr<std::string> text = ReadFile(path, 1 << 20);
  if (absl::IsNotFound(text.status())) return InvalidArgument("{}", Message(text.status()));
  CADRE_RETURN_IF_ERROR(text.status());
  CADRE_RETURN_IF_ERROR(ParseYaml(*text, path, message));
  return ApplyOverrides(overrides, message);
}

absl::Status ParseYaml(std::string_view text, const std::string& name, pb::Message* message) {
  CADRE_ASSIGN_OR_RETURN(const YamlNode root, ParseYamlTree(text, name));
  return FillMessage(root, Place{&name, true, ""}, message);
}

absl::Status ApplyOverrides(std::span<const std::string> overrides, pb::Message* message) {
  for (const std::string& text : overrides) CADRE_RETURN_IF_ERROR(ApplyOverride(text, message));
  return absl::OkStatus();
}

}  // namespace cadre
