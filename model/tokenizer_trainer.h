// Makes a byte-level BPE tokenizer from text (Sennrich et al. 2016, over bytes as GPT-2 does):
// counts the pieces of the text, then joins the most frequent pair of neighbours again and again;
// among equals the pair of lower ids. The same text in any order of calls gives the same files.
//
//   CADRE_ASSIGN_OR_RETURN(BpeTrainer trainer, BpeTrainer::Create({.vocab_size = 4096}));
//   CADRE_RETURN_IF_ERROR(trainer.AddText(text));
//   CADRE_ASSIGN_OR_RETURN(TrainedTokenizer trained, trainer.Train());
//   CADRE_RETURN_IF_ERROR(trained.Save("out/tokenizer"));
//
// A trainer belongs to one thread.
#pragma once

#include <absl/status/statusor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace cadre {

struct TrainBpeOptions {
  // Entries wanted, special tokens and the 256 bytes included; fewer come out when the text has no
  // more pairs that are frequent enough.
  int32_t vocab_size = 4096;
  // They get the first ids, in this order. Never found in the text that is trained on.
  std::vector<std::string> special_tokens = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
  // Each one of special_tokens, or empty for none.
  std::string bos_token = "<|endoftext|>";
  std::string eos_token = "<|endoftext|>";
  std::string pad_token = "<|endoftext|>";
  // Pairs seen less often are not joined.
  int64_t min_frequency = 2;
  // Called now and then with the merges made and wanted; may be empty.
  std::function<void(int64_t done, int64_t total)> progress;
};

// The two files of a Hugging Face tokenizer folder. The chat template is ChatML where the special
// tokens hold <|im_start|> and <|im_end|>, else there is none.
struct TrainedTokenizer {
  std::string tokenizer_json;
  std::string tokenizer_config_json;
  int32_t vocab_size = 0;

  // Writes both into `folder`, which is made where missing.
  absl::Status Save(const std::string& folder) const;
};

class BpeTrainer {
 public:
  // kInvalidArgument: a vocabulary that the bytes and special tokens do not fit into, or bad
  // special tokens.
  static absl::StatusOr<BpeTrainer> Create(TrainBpeOptions options);
  BpeTrainer(BpeTrainer&&) noexcept;
  BpeTrainer& operator=(BpeTrainer&&) noexcept;
  ~BpeTrainer();

  // Counts one document. kDataLoss when it is not UTF-8.
  absl::Status AddText(std::string_view text);

  // kFailedPrecondition when no text was added.
  absl::StatusOr<TrainedTokenizer> Train();

 private:
  struct State;
  explicit BpeTrainer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace cadre
