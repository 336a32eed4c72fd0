/** Light or dark: as the system has it, until somebody switches. */
import { keep, recall } from "./keep.js";

const KEPT_AS = "theme";
const system = matchMedia("(prefers-color-scheme: dark)");

/** Fires `change` when the colours of the page have changed. */
export const theme = new EventTarget();

export function isDark() {
  return (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
}

export function startTheme() {
  const kept = recall(KEPT_AS);
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
  system.addEventListener("change", tell);
}

export function switchTheme() {
  const chosen = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = chosen;
  keep(KEPT_AS, chosen);
  tell();
}

function tell() {
  theme.dispatchEvent(new Event("change"));
}
