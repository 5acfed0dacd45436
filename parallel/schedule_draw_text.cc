#include <algorithm>
#include <cmath>
#include <limits>

#include "parallel/schedule_boxes.h"
#include "parallel/schedule_draw.h"

namespace cadre {
namespace {

// A picture wider than this is cut to it: labels are of no use there.
constexpr double kMostColumns = 100000;

std::string Coloured(const std::string& text, std::string_view ansi, bool colour) {
  return colour ? fmt::format("\x1b[{}m{}\x1b[0m", ansi, text) : text;
}

class TextDrawing {
 public:
  TextDrawing(const Schedule& schedule, const Simulation& simulation, const DrawOptions& options)
      : schedule_(schedule), simulation_(simulation), options_(options) {
    for (int rank = 0; rank < schedule.spec.ranks; ++rank) {
      ranks_.push_back(BoxesOf(schedule, simulation, rank));
    }
    name_width_ = std::to_string(schedule.spec.ranks - 1).size() + 6;
    scale_ = Scale();
  }

  std::string Draw() const {
    std::string text;
    for (size_t rank = 0; rank < ranks_.size(); ++rank) {
      text += fmt::format("{:<{}}", fmt::format("rank {}", rank), name_width_) + Row(ranks_[rank]) +
              "\n";
    }
    return text + Legend();
  }

 private:
  // Columns per unit of time: every label in its box with a blank after it, or less.
  double Scale() const {
    double scale = 0;
    for (const std::vector<Box>& boxes : ranks_) {
      for (const Box& box : boxes) {
        scale = std::max(scale, (box.label.size() + 1) / (box.span.end - box.span.start));
      }
    }
    const double room = options_.columns > 0
                            ? std::max<double>(options_.columns - double(name_width_), 1)
                            : kMostColumns;
    return std::min(scale, room / simulation_.makespan);
  }

  int Column(double time) const { return static_cast<int>(std::lround(time * scale_)); }

  std::string Row(const std::vector<Box>& boxes) const {
    std::string row;
    int at = 0;
    const auto idle = [&](int until) {
      if (until > at) row += std::string(until - at, options_.colour ? ' ' : '.');
      at = std::max(at, until);
    };
    for (const Box& box : boxes) {
      idle(Column(box.span.start));
      const int width = Column(box.span.end) - at;
      if (width <= 0) continue;
      row += Coloured(Cell(box, width), box.style->ansi, options_.colour);
      at += width;
    }
    idle(Column(simulation_.makespan));
    return row;
  }

  // The label, filled to the box's width: "F3 ", plain "F3-".
  std::string Cell(const Box& box, int width) const {
    // A cut number would be another microbatch's.
    std::string text =
        static_cast<int>(box.label.size()) <= width ? box.label : box.label.substr(0, 1);
    text.resize(width, options_.colour ? ' ' : '-');
    return text;
  }

  std::string Legend() const {
    std::string legend;
    for (const BoxStyle* style : StylesOf(ranks_)) {
      const std::string letter =
          options_.colour ? fmt::format(" {} ", style->letter) : std::string(1, style->letter);
      legend +=
          fmt::format("{} {}   ", Coloured(letter, style->ansi, options_.colour), style->name);
    }
    legend += options_.colour ? "blank: idle" : ". idle";
    if (schedule_.spec.stages_per_rank > 1) legend += fmt::format("   {}", kStageLegend);
    return legend + "\n";
  }

  const Schedule& schedule_;
  const Simulation& simulation_;
  const DrawOptions options_;
  std::vector<std::vector<Box>> ranks_;
  size_t name_width_ = 0;
  double scale_ = 1;
};

}  // namespace

std::string DrawText(const Schedule& schedule, const Simulation& simulation,
                     const DrawOptions& options) {
  return TextDrawing(schedule, simulation, options).Draw();
}

}  // namespace cadre
