// The built-in chat page (chat_page.html, which the build puts into the program).
#pragma once

#include <string>
#include <string_view>

namespace cadre {

// The whole document.
std::string_view ChatPageHtml();

// The header lines of its answer: a policy under which the page runs its own script and style (by
// their digests), asks this server alone, and is framed by nobody.
std::string ChatPageHeaders(std::string_view html);

}  // namespace cadre
