/** The page: its parts put together. */
import { Card } from "./card.js";
import { find, icon } from "./dom.js";
import { showModel } from "./health.js";
import { startIntake } from "./intake.js";
import { language, setLanguage, startLanguage } from "./language.js";
import { Queue } from "./queue.js";
import { isDark, startTheme, switchTheme, theme } from "./theme.js";

const told = JSON.parse(find("#page").dataset.config);
const queue = new Queue();
const page = {
  rules: told.subtitles,
  maxBytes: told.max_upload_bytes,
  fields: () => ({
    lang: find("#language").value,
    use_itn: String(find("#itn").checked),
    hotwords: find("#hotwords").value.trim(),
  }),
  enqueue: (job) => queue.add(job),
  /** `neighbour` is the card that took the place of one, if any. */
  removed: (neighbour) => {
    find("#results").hidden = !find("#cards").childElementCount;
    (neighbour?.querySelector("header button") ?? find("#files")).focus({ preventScroll: true });
  },
};

function take(files) {
  if (!files.length) return;
  const cards = files.map((file) => new Card(file, page));
  find("#cards").prepend(...cards.map((card) => card.root));
  find("#results").hidden = false;
  for (const card of cards) card.start();
}

function showTheme() {
  const button = find("#theme");
  button.setAttribute("aria-pressed", String(isDark()));
  button.replaceChildren(icon(isDark() ? "sun" : "moon"));
}

startTheme();
startLanguage();
showTheme();
theme.addEventListener("change", showTheme);
find("#theme").addEventListener("click", switchTheme);
find("#switch-language").addEventListener("click", () => {
  setLanguage(language() === "en" ? "zh" : "en");
});
find("#api").hidden = !told.has_docs;
startIntake(take);
showModel();
