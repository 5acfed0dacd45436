#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/as_data.h"
#include "cli/commands.h"
#include "cli/compute_flags.h"
#include "cli/kv_cache_dtype.h"
#include "cli/model_folder.h"
#include "core/file.h"
#include "core/host_allocator.h"
#include "core/ops/elementwise.h"
#include "model/model.h"
#include "model/score.h"
#include "model/tokenizer.h"

namespace cadre::cli {
namespace {

constexpr int64_t kBatchTokens = 8192;

struct EvalFlags {
  std::string model, data;
  int64_t seq_len = 1024;
  std::string kv_cache_dtype = "auto";
  bool json = false;
  ComputeFlags compute;
};

// JSONL: the `text` of each line is a document; any other file is one.
absl::StatusOr<std::vector<std::string>> ReadDocuments(const std::string& path) {
  CADRE_ASSIGN_OR_RETURN(std::string text, ReadFile(path, int64_t{16} << 30));
  if (!IsValidUtf8(text)) {
    return DataLoss("{}: not valid UTF-8 at byte {}", path, ValidUtf8Prefix(text));
  }
  std::vector<std::string> documents;
  if (!path.ends_with(".jsonl")) {
    documents.push_back(std::move(text));
    return documents;
  }
  int64_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = std::min(text.find('\n', begin), text.size());
    ++number;
    std::string_view line = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    nlohmann::json json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || !json.contains("text") || !json["text"].is_string()) {
      return DataLoss("{}: line {}: not a JSON object with a string `text`", path, number);
    }
    documents.push_back(json["text"].get<std::string>());
  }
  return documents;
}

// Rows of seq_len predicted tokens and one before them; rows share no context.
std::vector<std::vector<int32_t>> CutRows(const std::vector<int32_t>& ids, int64_t seq_len) {
  std::vector<std::vector<int32_t>> rows;
  int64_t count = static_cast<int64_t>(ids.size());
  for (int64_t begin = 0; begin + 1 < count; begin += seq_len) {
    rows.emplace_back(ids.begin() + begin, ids.begin() + std::min(begin + seq_len + 1, count));
  }
  return rows;
}

struct Totals {
  double nll = 0.0;
  int64_t tokens = 0;
  int64_t bytes = 0;
};

void AddBatch(Context& ctx, const Decoder& decoder, const Tokenizer& tokenizer,
              std::span<const std::vector<int32_t>> rows, ops::KvQuantization quantization,
              Totals* totals) {
  Batch batch = PackSequences(*ctx.allocator, rows);
  batch.kv_quantization = quantization;
  Tensor logprobs = ops::CastTensor(ctx, ScoreBatch(ctx, decoder, batch).logprobs, DType::kF64);
  for (double value : logprobs.span<double>()) totals->nll -= value;
  for (const std::vector<int32_t>& row : rows) {
    totals->tokens += static_cast<int64_t>(row.size()) - 1;
    totals->bytes += static_cast<int64_t>(tokenizer.TextBytes(std::span(row).subspan(1)));
  }
}

absl::StatusOr<Totals> Evaluate(Context& ctx, const Decoder& decoder, const Tokenizer& tokenizer,
                                const EvalFlags& flags, ops::KvQuantization quantization) {
  CADRE_ASSIGN_OR_RETURN(std::vector<std::string> documents, ReadDocuments(flags.data));
  // A row has one token more than it predicts.
  int64_t seq_len = std::min(flags.seq_len, decoder.max_position() - 1);
  size_t rows_at_once = static_cast<size_t>(std::max<int64_t>(1, kBatchTokens / (seq_len + 1)));
  std::vector<std::vector<int32_t>> rows;
  for (const std::string& document : documents) {
    for (auto& row : CutRows(tokenizer.Encode(document, {.add_special_tokens = true}), seq_len)) {
      for (int32_t id : row) {
        if (id < decoder.spec().vocab) continue;
        return DataLoss("{}: token {} is over the model's vocab_size {}", flags.data, id,
                        decoder.spec().vocab);
      }
      rows.push_back(std::move(row));
    }
  }
  if (rows.empty()) return DataLoss("{}: no two tokens to predict one from the other", flags.data);
  Totals totals;
  for (size_t begin = 0; begin < rows.size(); begin += rows_at_once) {
    size_t count = std::min(rows_at_once, rows.size() - begin);
    AddBatch(ctx, decoder, tokenizer, std::span(rows).subspan(begin, count), quantization, &totals);
  }
  return totals;
}

absl::Status RunEval(const EvalFlags& flags) {
  CADRE_ASSIGN_OR_RETURN(Compute compute, ResolveCompute(flags.compute, "eval"));
  CADRE_ASSIGN_OR_RETURN(
      const ops::KvQuantization quantization,
      ParseKvCacheDType("--kv-cache-dtype", flags.kv_cache_dtype, compute.dtype));
  HostAllocator allocator;
  Context ctx{.allocator = &allocator, .threads = compute.threads};
  CADRE_ASSIGN_OR_RETURN(std::unique_ptr<Tokenizer> tokenizer,
                         AsData(Tokenizer::Load(flags.model)));
  CADRE_ASSIGN_OR_RETURN(
      std::unique_ptr<Model> model,
      AsData(LoadModel(ctx, flags.model, {.dtype = compute.dtype, .weights = compute.weights})));
  ctx.parameters = &model->parameters();
  CADRE_ASSIGN_OR_RETURN(Totals totals,
                         Evaluate(ctx, model->decoder(), *tokenizer, flags, quantization));
  double loss = totals.nll / static_cast<double>(totals.tokens);
  nlohmann::ordered_json json = {{"loss", loss}, {"perplexity", std::exp(loss)}};
  json["bits_per_byte"] = totals.nll / std::log(2.0) / static_cast<double>(totals.bytes);
  json["tokens"] = totals.tokens;
  json["bytes"] = totals.bytes;
  if (flags.json) {
    std::printf("%s\n", json.dump().c_str());
  } else {
    std::printf("loss %.6f  perplexity %.4f  bits per byte %.4f  (%ld tokens, %ld bytes)\n", loss,
                std::exp(loss), json["bits_per_byte"].get<double>(),
                static_cast<long>(totals.tokens), static_cast<long>(totals.bytes));
  }
  return absl::OkStatus();
}

}  // namespace

void AddEvalCommand(CLI::App& root, absl::Status* status) {
  auto flags = std::make_shared<EvalFlags>();
  CLI::App* command = root.add_subcommand("eval", "Loss, perplexity and bits per byte on a text");
  command->add_option("--model", flags->model, kModelHelp)->required();
  command->add_option("--data", flags->data, "Text, or .jsonl with a `text` in each line")
      ->required();
  command->add_option("--seq-len", flags->seq_len, "Tokens predicted per row")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 24));
  command
      ->add_option("--kv-cache-dtype", flags->kv_cache_dtype,
                   "Score as a server with such a cache does: auto, bf16, int8 or int4")
      ->capture_default_str();
  command->add_flag("--json", flags->json,
                    "One JSON document: loss, perplexity, bits_per_byte, tokens, bytes");
  AddComputeFlags(*command, &flags->compute);
  command->callback([flags, status] {
    flags->model = ModelFolder(flags->model);
    *status = RunEval(*flags);
  });
}

}  // namespace cadre::cli
