"use strict";
// Shows the text of a shape beside the pointer immediately; without this script, the browser shows it after a delay.
(() => {
  const tip = document.createElement("div");
  tip.className = "tip";
  document.body.append(tip);
  for (const title of document.querySelectorAll("svg title")) {
    title.parentNode.dataset.says = title.textContent;
    title.remove();
  }
  addEventListener("pointermove", (event) => {
    const shape = event.target.closest?.("[data-says]");
    tip.hidden = !shape;
    if (!shape) return;
    tip.textContent = shape.dataset.says;
    const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    const below = event.clientY + 18;
    const fits = below + tip.offsetHeight < innerHeight;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${fits ? below : event.clientY - tip.offsetHeight - 10}px`;
  });
})();
