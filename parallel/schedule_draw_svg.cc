#include <algorithm>

#include "core/counted.h"
#include "parallel/schedule_boxes.h"
#include "parallel/schedule_draw.h"

namespace cadre {
namespace {

constexpr double kLeft = 64, kTop = 52, kRow = 28, kBox = 24, kRight = 204, kLegend = 26;
constexpr double kCharacter = 7;  // of a label, at its size
constexpr double kMostWidth = 3000;

class SvgDrawing {
 public:
  SvgDrawing(const Schedule& schedule, const Simulation& simulation)
      : schedule_(schedule), simulation_(simulation) {
    double widest = 0;
    for (int rank = 0; rank < schedule.spec.ranks; ++rank) {
      ranks_.push_back(BoxesOf(schedule, simulation, rank));
      for (const Box& box : ranks_.back()) {
        widest =
            std::max(widest, (box.label.size() * kCharacter + 6) / (box.span.end - box.span.start));
      }
    }
    scale_ = std::min(widest, kMostWidth / simulation.makespan);
    width_ = kLeft + std::max(simulation.makespan * scale_, 420.0) + kRight;
    height_ = kTop + kRow * schedule.spec.ranks + kLegend + 22;
  }

  std::string Draw() const {
    std::string svg = fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:g} {1:g}\" width=\"{0:g}\" "
        "height=\"{1:g}\" role=\"img\" aria-labelledby=\"t\">\n<title id=\"t\">{2}</title>\n{3}",
        Round(width_), Round(height_), Title(), Style());
    svg += "<rect class=\"page\" width=\"100%\" height=\"100%\"/>\n";
    svg += Text(12, 22, "head", Title());
    svg +=
        Text(kLeft + simulation_.makespan * scale_ + 12, kTop - 8, "", "idle    peak activations");
    for (int rank = 0; rank < schedule_.spec.ranks; ++rank) svg += Row(rank);
    return svg + Legend() + "</svg>\n";
  }

 private:
  static double Round(double value) {
    return static_cast<double>(static_cast<int64_t>(value * 100 + 0.5)) / 100;
  }

  static std::string Text(double x, double y, const char* css, const std::string& text) {
    return fmt::format(
        "<text x=\"{:g}\" y=\"{:g}\" class=\"{}\" xml:space=\"preserve\">{}</text>\n", Round(x),
        Round(y), css, text);
  }

  std::string Title() const {
    const ScheduleSpec& spec = schedule_.spec;
    const std::string stages =
        spec.stages_per_rank > 1 ? fmt::format(" x {} stages", spec.stages_per_rank) : "";
    return fmt::format(
        "{}: {}{}, {}; makespan {:.6g}, ideal {:.6g}, bubble "
        "{:.1f} %",
        Name(spec.kind), Counted(spec.ranks, "rank"), stages,
        Counted(spec.microbatches, "microbatch", "es"), simulation_.makespan, simulation_.ideal,
        100 * simulation_.bubble_share());
  }

  std::string Style() const {
    std::string light, dark;
    for (const BoxStyle* style : StylesOf(ranks_)) {
      light += fmt::format(".{}{{fill:{}}}", style->css, style->fill);
      dark += fmt::format(".{}{{fill:{}}}", style->css, style->dark_fill);
    }
    return fmt::format(
        "<style>text{{font:12px ui-monospace,Menlo,Consolas,monospace;fill:#1b1b1b}}"
        ".head{{font-size:14px;font-weight:600}}.in{{fill:#fff;text-anchor:middle}}"
        ".page{{fill:#fff}}.idle{{fill:#ececec}}.later{{fill:#fff;opacity:.22}}{}"
        "@media(prefers-color-scheme:dark){{text{{fill:#ececec}}.in{{fill:#111}}"
        ".page{{fill:#161616}}.idle{{fill:#2b2b2b}}.later{{fill:#fff;opacity:.4}}{}}}</style>\n",
        light, dark);
  }

  std::string Row(int rank) const {
    const double y = kTop + kRow * rank, end = kLeft + simulation_.makespan * scale_;
    std::string svg = Text(12, y + 17, "", fmt::format("rank {}", rank));
    svg +=
        fmt::format("<rect class=\"idle\" x=\"{:g}\" y=\"{:g}\" width=\"{:g}\" height=\"{:g}\"/>\n",
                    kLeft, y, Round(end - kLeft), kBox);
    for (const Box& box : ranks_[rank]) svg += Drawn(box, y);
    const double idle = 100 * simulation_.idle(rank) / simulation_.makespan;
    return svg +
           Text(end + 12, y + 17, "",
                fmt::format("{:4.1f} %  {:.4g}", idle, simulation_.ranks[rank].peak_activations));
  }

  // Later stages of a rank are paler.
  std::string Drawn(const Box& box, double y) const {
    const double x = kLeft + box.span.start * scale_;
    const double width = (box.span.end - box.span.start) * scale_;
    const auto rect = [&](std::string_view css) {
      return fmt::format(
          "<rect class=\"{}\" x=\"{:g}\" y=\"{:g}\" width=\"{:g}\" height=\"{:g}\" rx=\"2\"/>", css,
          Round(x + 0.5), y, Round(std::max(width - 1, 0.5)), kBox);
    };
    std::string svg = fmt::format("<g><title>{}: {:.6g} to {:.6g}</title>{}", ToString(*box.action),
                                  box.span.start, box.span.end, rect(box.style->css));
    if (box.place % 2 == 1) svg += rect("later");
    if (width >= box.label.size() * kCharacter) {
      svg += fmt::format("<text class=\"in\" x=\"{:g}\" y=\"{:g}\">{}</text>", Round(x + width / 2),
                         y + 16, box.label);
    }
    return svg + "</g>\n";
  }

  std::string Legend() const {
    const double y = kTop + kRow * schedule_.spec.ranks + kLegend;
    double x = kLeft;
    std::string svg;
    for (const BoxStyle* style : StylesOf(ranks_)) {
      const std::string name = fmt::format("{} {}", style->letter, style->name);
      svg += fmt::format(
          "<rect class=\"{}\" x=\"{:g}\" y=\"{:g}\" width=\"14\" height=\"14\" rx=\"2\"/>\n",
          style->css, Round(x), y - 11);
      svg += Text(x + 19, y, "", name);
      x += 19 + (name.size() + 2) * kCharacter + 8;
    }
    if (schedule_.spec.stages_per_rank > 1) svg += Text(x, y, "", std::string(kStageLegend));
    return svg;
  }

  const Schedule& schedule_;
  const Simulation& simulation_;
  std::vector<std::vector<Box>> ranks_;
  double scale_ = 1, width_ = 0, height_ = 0;
};

}  // namespace

std::string DrawSvg(const Schedule& schedule, const Simulation& simulation) {
  return SvgDrawing(schedule, simulation).Draw();
}

}  // namespace cadre
