"use strict";
// Draws the page's figures, in the colours of its style sheet.
(() => {
  const source = document.getElementById("figures").textContent;
  const config = { responsive: true, displayModeBar: false };
  const draw = () => {
    const sheet = getComputedStyle(document.documentElement);
    const colour = (name) =>
      Array.isArray(name) ? name.map(colour)
        : String(name).startsWith("--") ? sheet.getPropertyValue(name).trim() : name;
    const { template, figures } = JSON.parse(
      source, (key, value) => /color(way)?$/.test(key) ? colour(value) : value);
    template.layout.font.family = getComputedStyle(document.body).fontFamily;
    figures.forEach(({ data, layout }, number) =>
      Plotly.react(`figure-${number}`, data, { ...layout, template }, config));
  };
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
