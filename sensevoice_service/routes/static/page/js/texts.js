/** All words of the page. Both languages have the same keys. */
import { en } from "./texts.en.js";
import { zh } from "./texts.zh.js";

export const TEXTS = { en, zh };
