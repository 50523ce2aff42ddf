// Wide tables and code scroll sideways; with this, by keyboard, too.
document$.subscribe(() => setTimeout(() => {
  document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre code").forEach((part) => { part.tabIndex = 0; });
}));
// Two pictures over each other, and a slider that says where one ends and the other begins.
document$.subscribe(() => document.querySelectorAll(".compare:not(.live)").forEach((pair) => {
  const [left, right] = [...pair.querySelectorAll("img")].map((picture) => picture.alt);
  const slider = Object.assign(document.createElement("input"), {type: "range", min: 0, max: 100, value: 50});
  slider.setAttribute("aria-label", `Left: ${left} Right: ${right} Where they meet, in percent`);
  slider.addEventListener("input", () => pair.style.setProperty("--at", `${slider.value}%`));
  pair.classList.add("live");
  pair.querySelector("p").after(slider);
}));
