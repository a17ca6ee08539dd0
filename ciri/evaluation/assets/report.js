// Each case: two pictures of one moment above each other, and a line between them that follows the pointer.
for (const card of document.querySelectorAll(".card[data-case]")) {
  const wipe = card.querySelector(".wipe");
  const [under, over] = wipe.querySelectorAll("img");
  const [left, right] = card.querySelectorAll("select");
  const buttons = [...card.querySelectorAll(".strips button")];
  let moment = Number(card.dataset.moment);

  const picture = (strip) =>
    buttons.find((b) => b.dataset.strip === strip && Number(b.dataset.moment) === moment).firstElementChild.src;
  function show() {
    under.src = picture(left.value);
    over.src = picture(right.value);
    card.querySelector("output").textContent = "frame " + card.dataset.frames.split(" ")[moment];
    for (const b of buttons) {
      const chosen = Number(b.dataset.moment) === moment && [left.value, right.value].includes(b.dataset.strip);
      b.classList.toggle("chosen", chosen);
    }
  }
  function place(event) {
    const box = wipe.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    wipe.style.setProperty("--at", 100 * share + "%");
  }
  wipe.addEventListener("pointermove", place);
  wipe.addEventListener("pointerdown", place);
  wipe.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -4, ArrowRight: 4 }[event.key];
    if (!step) return;
    const now = parseFloat(wipe.style.getPropertyValue("--at") || "50");
    wipe.style.setProperty("--at", Math.min(100, Math.max(0, now + step)) + "%");
    event.preventDefault();
  });
  left.addEventListener("change", show);
  right.addEventListener("change", show);
  for (const b of buttons) {
    b.addEventListener("click", () => {
      moment = Number(b.dataset.moment);
      if (b.dataset.strip !== left.value) right.value = b.dataset.strip;
      show();
    });
  }
  show();
}
