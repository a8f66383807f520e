-- Entries at the end of a stream, whose ids keep within 64 bits: 20 of them count the entries of a millisecond. Under a clock that was
-- set back Redis counts on in the last millisecond, and never ends: so at half of what fits, ids go on a millisecond later.
local function sequence_of(id)
  return tonumber(string.match(id, '%d+$'))
end
local function fits(id)
  return sequence_of(id) < 1048576
end
local function go_on_after(stream, id)
  if sequence_of(id) >= 524288 then
    redis.call('XSETID', stream, string.format('%.0f-0', string.match(id, '^%d+') + 1))
  end
end
local function add(stream, ...)
  local id = redis.call('XADD', stream, '*', ...)
  go_on_after(stream, id)
  if fits(id) then return id end
  redis.call('XDEL', stream, id) -- something else wrote the id before it
  return redis.call('XADD', stream, '*', ...)
end
