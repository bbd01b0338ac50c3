// Tests stand open; exercises' solutions and their tests stay folded until asked for. Without scripts all are folded.
document.addEventListener("DOMContentLoaded", () => {
  for (const fold of document.querySelectorAll(".cell.tag_test:not(.tag_closed) > details")) fold.open = true;
});
