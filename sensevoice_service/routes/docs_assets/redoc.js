"use strict";

// Redoc names fonts that a page is expected to load from the internet.
const fontFamily = "system-ui, sans-serif";

Redoc.init(
  "openapi.json",
  { theme: { typography: { fontFamily, headings: { fontFamily } } } },
  document.getElementById("reference"),
);
