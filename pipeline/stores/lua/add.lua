-- Entries at the end of a stream, whose ids keep within 64 bits: 20 of them count the entries of a millisecond. Under a clock that was
-- set back Redis counts on in the last millisecond, and never ends: so at half of what fits, ids go on a millisecond later.
local function fits(stream, id)
  local ms, sequence = string.match(id, '^(%d+)-(%d+)$')
  if tonumber(sequence) >= 524288 then redis.call('XSETID', stream, string.format('%.0f-0', ms + 1)) end
  return tonumber(sequence) < 1048576
end
local function add(stream, ...)
  local id = redis.call('XADD', stream, '*', ...)
  if fits(stream, id) then return id end
  redis.call('XDEL', stream, id) -- something else wrote the id before it
  return redis.call('XADD', stream, '*', ...)
end
