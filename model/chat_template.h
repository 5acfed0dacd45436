// A model's chat template: messages in, the prompt's text out, with the stretches that the template
// wrote told apart from those that came from the caller, so that a special token spelled inside a
// message stays text (Tokenizer::EncodeSpans).
//
//   CADRE_ASSIGN_OR_RETURN(auto chat, ChatTemplate::Load("models/qwen"));
//   CADRE_ASSIGN_OR_RETURN(RenderedChat rendered,
//                          chat->Render({.messages = R"([{"role":"user","content":"hi"}])"}));
//   std::vector<int32_t> ids = tokenizer->EncodeSpans(rendered.Spans());
//
// Templates are the Jinja subset that models use (model/jinja_*.h), rendered as `transformers` does
// (trim_blocks, lstrip_blocks). A template comes from the model folder only, sees the given values
// only, and is bounded in steps, memory, output and nesting. A ChatTemplate never changes after it
// is made: any number of threads may render at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"
#include "model/tokenizer.h"

namespace cadre {

struct ChatInput {
  std::string messages;  // a JSON array of objects, each with a string "role"
  std::string tools;     // a JSON array, or empty: none
  // A JSON object of further names for the template (enable_thinking, ...), or empty. The names
  // that Render itself gives, and chat_template, are refused.
  std::string kwargs;
  bool add_generation_prompt = true;
  // The text ends with the last message's content, to be continued; excludes the above.
  bool continue_final_message = false;
  int64_t now = 0;  // for strftime_now, seconds since 1970; 0: the clock
};

struct RenderedChat {
  struct Run {
    size_t end;  // of the run in `text`; it begins where the one before ends
    bool from_template;
  };
  std::string text;
  std::vector<Run> runs;

  // For Tokenizer::EncodeSpans; the views live as long as this object does, unchanged.
  std::vector<TextSpan> Spans() const;
};

struct ByteRange {
  size_t begin = 0;
  size_t end = 0;
};

struct TrainingChat {
  RenderedChat chat;
  // What the model is to learn: for each assistant message, from behind the generation prompt to
  // the end of its turn (the end-of-turn token and what the template puts behind it included).
  std::vector<ByteRange> assistant;
};

class ChatTemplate {
 public:
  // Reads the template from chat_template.jinja or, where that is absent, from
  // tokenizer_config.json (a string, or a list of named ones: "default" and, for requests with
  // tools, "tool_use"), and the special tokens' names (bos_token, ...) that templates use.
  // kNotFound: the folder has no template. kInvalidArgument: it has one that cannot be used.
  // `file`, where it is given, takes the template's place; the special tokens stay the folder's.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Load(const std::string& model_dir,
                                                            const std::string& file = "");

  // From memory; `special_tokens` is a JSON object of strings, or empty.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Parse(std::string_view source,
                                                             std::string_view special_tokens = {});

  ~ChatTemplate();
  ChatTemplate(const ChatTemplate&) = delete;
  ChatTemplate& operator=(const ChatTemplate&) = delete;

  // Of the template that requests without tools are rendered by.
  const std::string& source() const;

  // kInvalidArgument, with the template's line, for whatever the template or the input does wrong,
  // the template's own raise_exception included.
  absl::StatusOr<RenderedChat> Render(const ChatInput& input) const;

  // The whole conversation and where its assistant turns are, found by rendering prefixes of it:
  // with the generation prompt up to the turn, and up to its end. kInvalidArgument when the
  // template renders an earlier turn otherwise once later ones follow (some drop reasoning): such a
  // conversation must be cut into one sample per turn. The generation options of `input` are
  // ignored.
  absl::StatusOr<TrainingChat> RenderForTraining(const ChatInput& input) const;

 private:
  struct Parts;
  explicit ChatTemplate(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

}  // namespace cadre
