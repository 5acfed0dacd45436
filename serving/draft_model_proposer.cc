#include "serving/draft_model_proposer.h"

#include <algorithm>
#include <utility>

namespace cadre {

DraftModelProposer::DraftModelProposer(ModelHome& draft, const DraftModelOptions& options,
                                       KvPlan kv)
    : draft_(draft),
      options_(options),
      cache_(allocator_, std::move(kv.layouts), kv.blocks, {.prefix_caching = false}) {
  ctx_ = {.allocator = &allocator_, .threads = options.threads, .packed = &packed_};
  UseWeights();
}

void DraftModelProposer::UseWeights() {
  ctx_.parameters = &draft_.model()->parameters();
  packed_ = std::move(draft_.model()->packed());
}

void DraftModelProposer::GiveUpMemory(int level) {
  if (!std::exchange(cache_dropped_, true)) cache_.DropBytes();
  if (level == 2 && draft_.reloadable() && draft_.model() != nullptr) {
    ctx_.parameters = nullptr;
    packed_ = {};
    draft_.Drop();
  }
  allocator_.Trim();
}

absl::Status DraftModelProposer::TakeWeights() {
  if (draft_.model() != nullptr) return absl::OkStatus();
  CADRE_RETURN_IF_ERROR(draft_.Reload());
  UseWeights();
  return absl::OkStatus();
}

void DraftModelProposer::TakeMemory() {
  if (std::exchange(cache_dropped_, false)) cache_.AllocateBytes();
}

absl::StatusOr<std::unique_ptr<DraftModelProposer>> DraftModelProposer::Create(
    ModelHome& draft, int64_t vocabulary, const DraftModelOptions& options) {
  const Model& model = *draft.model();
  if (model.spec().vocab != vocabulary) {
    return InvalidArgument("speculative.model: a vocabulary of {}, the model's has {}",
                           model.spec().vocab, vocabulary);
  }
  DraftModelOptions own = options;
  own.kv.context = std::min(own.kv.context, model.decoder().max_position());
  CADRE_ASSIGN_OR_RETURN(KvPlan kv, PlanKvCache(model, own.kv));
  return std::unique_ptr<DraftModelProposer>(new DraftModelProposer(draft, own, std::move(kv)));
}

std::optional<DraftModelProposer::Draft> DraftModelProposer::Follow(const DraftRequest& request,
                                                                    int64_t* budget) {
  const Sequence& sequence = *request.sequence;
  Reader& reader = readers_[sequence.request.id];
  const auto same = std::ranges::mismatch(reader.written, sequence.tokens).in1;
  reader.written.erase(same, reader.written.end());
  const std::span<const int32_t> known = sequence.tokens;
  cache_.Commit(reader.kv, known.first(reader.written.size()));
  const std::span<const int32_t> unread = known.subspan(reader.written.size());
  const int64_t count = std::min(static_cast<int64_t>(unread.size()), *budget);
  const int64_t room = sequence.known_tokens() + request.most;
  if (count == 0 || room > options_.kv.context || !cache_.Extend(reader.kv, room)) return {};
  *budget -= count;
  return Draft{request, &reader, unread.first(static_cast<size_t>(count)),
               count == static_cast<int64_t>(unread.size())};
}

void DraftModelProposer::Step(std::span<Draft> drafts, int64_t round) {
  std::vector<PlannedTokens> reads;
  std::vector<const Sequence*> sequences;
  for (const Draft& draft : drafts) {
    const std::span<const int32_t> tokens =
        round == 0 ? draft.unread : std::span(draft.request.sequence->draft).last(1);
    reads.push_back(
        {&draft.reader->kv, tokens, static_cast<int64_t>(draft.reader->written.size())});
    sequences.push_back(draft.request.sequence);
  }
  const Model& model = *draft_.model();
  const std::vector<int32_t> drawn =
      DrawDrafts({ctx_, model.decoder(), static_cast<int>(model.spec().layers.size()), cache_},
                 allocator_, reads, sequences);
  for (size_t i = 0; i < drafts.size(); ++i) {
    std::vector<int32_t>& written = drafts[i].reader->written;
    written.insert(written.end(), reads[i].tokens.begin(), reads[i].tokens.end());
    if (drafts[i].whole) drafts[i].request.sequence->draft.push_back(drawn[i]);
  }
}

void DraftModelProposer::Propose(std::span<const DraftRequest> requests) {
  std::vector<Draft> drafts;
  int64_t budget = options_.max_read_tokens;
  for (const DraftRequest& request : requests) {
    if (auto draft = Follow(request, &budget)) drafts.push_back(*draft);
  }
  for (int64_t round = 0; !drafts.empty(); ++round) {
    Step(drafts, round);
    std::erase_if(drafts, [&](const Draft& draft) {
      return !draft.whole || round + 1 >= draft.request.most;
    });
  }
}

void DraftModelProposer::Forget(uint64_t id) {
  const auto found = readers_.find(id);
  if (found == readers_.end()) return;
  cache_.Free(found->second.kv);
  readers_.erase(found);
}

}  // namespace cadre
