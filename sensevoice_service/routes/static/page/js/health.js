/** What serves, and the banner of the demo model. */
import { element, find } from "./dom.js";
import { say } from "./language.js";

const AGAIN_MS = 2000;

/** Ask until there is a model. */
export async function showModel() {
  const health = await ask();
  show(health);
  if (health.model?.demo) await showDemo();
  if (!health.model) setTimeout(showModel, AGAIN_MS);
}

async function ask() {
  try {
    return await (await fetch("health")).json();
  } catch {
    return { status: "unreachable" };
  }
}

function show({ status, model, device, precision }) {
  const chip = find("#model");
  chip.dataset.status = model ? "ready" : status;
  if (model) say(chip, "model.is", { name: model.name, device, precision });
  else if (status === "loading") say(chip, "model.loading");
  else say(chip, status === "unreachable" ? "model.unreachable" : "model.failed");
}

async function showDemo() {
  const { en, zh } = await (await fetch(new URL("../demo-words.json", import.meta.url))).json();
  const [english, chinese] = [en.split(" "), [...zh]];
  say(find("#demo-english"), "demo.english", { count: english.length });
  say(find("#demo-chinese"), "demo.chinese", { count: chinese.length });
  list(find("#demo-english-words"), english);
  list(find("#demo-chinese-words"), chinese);
  find("#demo").hidden = false;
}

function list(place, words) {
  place.replaceChildren(...words.map((word) => element("li", {}, word)));
}
