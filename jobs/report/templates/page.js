"use strict";
// The gallery's filters. Without scripts all tiles are there and the bar of filters is not.
(() => {
  const form = document.querySelector("[data-filters]");
  const list = document.querySelector("[data-tiles]");
  if (!form || !list) return;
  const tiles = [...list.children];
  const groups = [...form.querySelectorAll("button[data-group]")];
  const selects = [...form.querySelectorAll("select[data-key]")];
  const search = form.querySelector("input[type=search]");
  const order = form.querySelector("select[data-order]");
  const count = form.querySelector("output");
  const none = document.querySelector("[data-none]");
  let group = "";

  const matches = (tile, words) =>
    (!group || tile.dataset.groups.split("|").includes(group)) &&
    // A value stands after "=", so that "" is all of them and "=" those without one.
    selects.every((s) => !s.value || s.value === "=" + (tile.getAttribute("data-" + s.dataset.key) ?? "\0")) &&
    words.every((word) => tile.dataset.text.includes(word));

  const show = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const tile of tiles) {
      tile.hidden = !matches(tile, words);
      shown += !tile.hidden;
    }
    for (const button of groups) button.setAttribute("aria-pressed", String(button.dataset.group === group));
    count.value = shown + " of " + tiles.length + " shown";
    none.hidden = shown > 0;
  };

  const sort = () => {
    const [key, way] = order.value.split(" ");
    const value = (tile) => Number(tile.getAttribute("data-score-" + key) ?? NaN);
    const sorted = !key ? tiles : [...tiles].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y); // those without the score come last
      return x === y ? 0 : (way === "up" ? x < y : x > y) ? -1 : 1;
    });
    list.append(...sorted);
  };

  for (const button of groups) button.addEventListener("click", () => { group = button.dataset.group; show(); });
  for (const select of selects) select.addEventListener("change", show);
  search.addEventListener("input", show);
  if (order) order.addEventListener("change", sort);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => { group = ""; setTimeout(() => { show(); if (order) sort(); }); });
  form.hidden = false;
  show();
})();
